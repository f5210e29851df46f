//! The one heap of the guest: Rust's, Luau's (mlua allocates by Rust's allocator) and C++'s.
//!
//! The allocator of zig's libc rounds each block up to a power of two and never joins freed ones, so that a
//! script would get half of the memory that its policy promises. What is left to it is C's `malloc`.

use std::alloc::{Layout, alloc, dealloc};
use std::ptr;

#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

/// The alignment of C++'s blocks, and the room before each where its size is kept.
const HEADER_BYTES: usize = 8;

fn layout(size: usize) -> Option<Layout> {
    Layout::from_size_align(size.checked_add(HEADER_BYTES)?, HEADER_BYTES).ok()
}

/// C++'s `operator new`, but null where there is no memory; see `operator_new.cpp`.
#[unsafe(no_mangle)]
extern "C" fn neoc_allocate(size: usize) -> *mut u8 {
    let Some(layout) = layout(size) else { return ptr::null_mut() };
    // SAFETY: the layout has at least the header's bytes.
    let block = unsafe { alloc(layout) };
    if block.is_null() {
        return block;
    }
    // SAFETY: the block is larger than the header, and aligned for it.
    unsafe {
        block.cast::<usize>().write(size);
        block.add(HEADER_BYTES)
    }
}

/// C++'s `operator delete`.
///
/// # Safety
/// `memory` is null, or came from [`neoc_allocate`] and was not freed before.
#[unsafe(no_mangle)]
unsafe extern "C" fn neoc_free(memory: *mut u8) {
    if memory.is_null() {
        return;
    }
    // SAFETY: the caller vouches that `neoc_allocate` made the block, with its size in front.
    unsafe {
        let block = memory.sub(HEADER_BYTES);
        let size = block.cast::<usize>().read();
        dealloc(block, Layout::from_size_align_unchecked(size + HEADER_BYTES, HEADER_BYTES));
    }
}

unsafe extern "C" {
    fn malloc(size: usize) -> *mut u8;
    fn free(memory: *mut u8);
}

/// Has C's `malloc` take a page for each size that it tells apart, once for all. It would take them one by
/// one, in every request anew, and growing the memory is a system call that all threads of the host wait for.
pub fn warm_up() {
    // SAFETY: each block is freed once, and nobody writes to it.
    unsafe {
        let blocks: Vec<*mut u8> = (3..=15).map(|power| malloc((1 << power) - 8)).collect();
        blocks.into_iter().for_each(|block| free(block));
    }
}

/// No hole between two blocks is as large, in bytes.
const LARGEST_HOLE_BYTES: usize = 1024 * 1024;

/// Fills every hole between the blocks that there are, for good. What is allocated from now on lies behind them.
pub fn fill_holes() {
    let allocate = |bytes| Vec::<u8>::with_capacity(bytes);
    // So large a block lies behind all others.
    let end = allocate(LARGEST_HOLE_BYTES).as_ptr();
    let mut bytes = LARGEST_HOLE_BYTES;
    // The large holes first. What is left of one is a smaller one.
    while bytes > 0 {
        let block = allocate(bytes);
        if block.as_ptr() < end {
            std::mem::forget(block);
        } else {
            // The allocator's own steps are 8 bytes.
            bytes -= (bytes / 8).clamp(8, 4096).min(bytes);
        }
    }
}

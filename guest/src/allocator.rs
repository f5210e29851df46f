//! The one heap of the guest: Rust's, Luau's (mlua allocates by Rust's allocator), C++'s and C's.
//!
//! The allocator of zig's libc rounds each block up to a power of two and never joins freed ones, so that a script
//! would get half of the memory that its policy promises; and a page for each size is one more page that a request
//! makes its own. What C can call is therefore defined here; libc's own functions are weak, and give way.

use std::alloc::{Layout, alloc, dealloc};
use std::ffi::c_int;
use std::ptr;

#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

/// What is kept before each block of C's: its size, and how many bytes before it the allocator's own block begins.
type Header = [usize; 2];

const HEADER_BYTES: usize = size_of::<Header>();

/// The largest alignment that C asks for, which is that of exceptions.
const MAX_ALIGNMENT: usize = 16;

/// `ENOMEM` of wasi-libc.
const NO_MEMORY: c_int = 48;

/// A block of C's; null where there is no memory, or for an alignment that nobody has.
fn allocate(size: usize, alignment: usize) -> *mut u8 {
    let offset = alignment.max(HEADER_BYTES);
    let layout = size.checked_add(offset).and_then(|total| Layout::from_size_align(total, offset).ok());
    let Some(layout) = layout.filter(|_| alignment <= MAX_ALIGNMENT) else { return ptr::null_mut() };
    // SAFETY: the layout has at least the header's bytes.
    let start = unsafe { alloc(layout) };
    if start.is_null() {
        return start;
    }
    // SAFETY: the block is larger than `offset`, which is no less than the header, and aligned for it.
    unsafe {
        let block = start.add(offset);
        block.sub(HEADER_BYTES).cast::<Header>().write([size, offset]);
        block
    }
}

/// What was written before a block.
///
/// # Safety
/// [`allocate`] gave the block, and it was not freed.
unsafe fn header(block: *mut u8) -> Header {
    // SAFETY: `allocate` wrote it there.
    unsafe { block.sub(HEADER_BYTES).cast::<Header>().read() }
}

/// C's, and by way of operator_new.cpp C++'s.
#[unsafe(no_mangle)]
extern "C" fn malloc(size: usize) -> *mut u8 {
    allocate(size, HEADER_BYTES)
}

#[unsafe(no_mangle)]
extern "C" fn aligned_alloc(alignment: usize, size: usize) -> *mut u8 {
    allocate(size, alignment)
}

/// # Safety
/// `block` can be written to.
#[unsafe(no_mangle)]
unsafe extern "C" fn posix_memalign(block: *mut *mut u8, alignment: usize, size: usize) -> c_int {
    let allocated = allocate(size, alignment);
    if allocated.is_null() {
        return NO_MEMORY;
    }
    // SAFETY: the caller vouches for it.
    unsafe { block.write(allocated) };
    0
}

#[unsafe(no_mangle)]
extern "C" fn calloc(n: usize, size: usize) -> *mut u8 {
    let Some(size) = n.checked_mul(size) else { return ptr::null_mut() };
    let block = malloc(size);
    if !block.is_null() {
        // SAFETY: the block has so many bytes.
        unsafe { block.write_bytes(0, size) };
    }
    block
}

/// # Safety
/// As for [`free`].
#[unsafe(no_mangle)]
unsafe extern "C" fn realloc(block: *mut u8, size: usize) -> *mut u8 {
    let new = malloc(size);
    if !new.is_null() && !block.is_null() {
        // SAFETY: the caller vouches for `block`, and both have as many bytes as the smaller one.
        unsafe {
            let [old_size, _] = header(block);
            ptr::copy_nonoverlapping(block, new, old_size.min(size));
            free(block);
        }
    }
    new
}

/// # Safety
/// `block` is null, or came from one of the functions above and was not freed before.
#[unsafe(no_mangle)]
unsafe extern "C" fn free(block: *mut u8) {
    if block.is_null() {
        return;
    }
    // SAFETY: the caller vouches that `allocate` made the block, with this layout.
    unsafe {
        let [size, offset] = header(block);
        dealloc(block.sub(offset), Layout::from_size_align_unchecked(size + offset, offset));
    }
}

/// No hole between two blocks is as large, in bytes.
const LARGEST_HOLE_BYTES: usize = 1024 * 1024;

/// Fills every hole between the blocks that there are, for good. What is allocated from now on lies behind them.
pub fn fill_holes() {
    let allocate = |bytes| Vec::<u8>::with_capacity(bytes);
    // So large a block lies behind all others.
    let last = allocate(LARGEST_HOLE_BYTES);
    let end = last.as_ptr().addr();
    drop(last);
    let mut bytes = LARGEST_HOLE_BYTES;
    // The large holes first. What is left of one is a smaller one.
    while bytes > 0 {
        let block = allocate(bytes);
        if block.as_ptr().addr() < end {
            std::mem::forget(block);
        } else {
            // The allocator's own steps are 8 bytes.
            bytes -= (bytes / 8).clamp(8, 4096).min(bytes);
        }
    }
}

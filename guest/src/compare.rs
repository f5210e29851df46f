//! C's `memcmp`. Luau compares a string with those that it has by it, for each string that a request makes, and the one
//! that comes with the compiler goes byte by byte. That one is weak, and gives way.

use std::ffi::c_int;

/// # Safety
/// Both have so many bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, n: usize) -> c_int {
    let mut at = 0;
    // SAFETY: the caller vouches for the bytes, and no more than `n` are read.
    unsafe {
        // What is equal is passed over in words; the byte that is not, if there is one, is among the next few.
        let word = |block: *const u8, at| block.add(at).cast::<u64>().read_unaligned();
        while at + size_of::<u64>() <= n && word(left, at) == word(right, at) {
            at += size_of::<u64>();
        }
        let half = |block: *const u8, at| block.add(at).cast::<u32>().read_unaligned();
        if at + size_of::<u32>() <= n && half(left, at) == half(right, at) {
            at += size_of::<u32>();
        }
        while at < n && *left.add(at) == *right.add(at) {
            at += 1;
        }
        if at < n { c_int::from(*left.add(at)) - c_int::from(*right.add(at)) } else { 0 }
    }
}

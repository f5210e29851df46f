//! C's `memcmp`. Luau compares a string with those that it has by it, for each string that a request makes, and the one
//! that comes with the compiler goes byte by byte. That one is weak, and gives way.

use std::cmp::Ordering;
use std::ffi::c_int;

/// # Safety
/// Both have so many bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, n: usize) -> c_int {
    let mut at = 0;
    // SAFETY: the caller vouches for the bytes, and no more than `n` are read.
    unsafe {
        while at + size_of::<u64>() <= n {
            let word = |block: *const u8| u64::from_be(block.add(at).cast::<u64>().read_unaligned());
            match word(left).cmp(&word(right)) {
                Ordering::Equal => at += size_of::<u64>(),
                unequal => return unequal as c_int,
            }
        }
        if at + size_of::<u32>() <= n {
            let word = |block: *const u8| u32::from_be(block.add(at).cast::<u32>().read_unaligned());
            match word(left).cmp(&word(right)) {
                Ordering::Equal => at += size_of::<u32>(),
                unequal => return unequal as c_int,
            }
        }
        while at < n {
            match (*left.add(at)).cmp(&*right.add(at)) {
                Ordering::Equal => at += 1,
                unequal => return unequal as c_int,
            }
        }
    }
    0
}

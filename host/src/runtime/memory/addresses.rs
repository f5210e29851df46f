//! Addresses of the process's own: reserved, opened in part, given back to the system when dropped.

use std::{ffi::c_void, io, ops::Range};

use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap_anonymous, mprotect, munmap};

/// Addresses before and behind that nobody may ever touch, in bytes: whoever miscalculates an address by little meets
/// nobody else. More than any frame of the host has on a stack.
const GUARD_BYTES: usize = 64 * 1024;

/// A range of addresses that nobody else has. Offsets count from its first one, in bytes.
#[derive(Debug)]
pub struct Addresses {
    start: usize,
    n_bytes: usize,
}

impl Addresses {
    /// Reserves so many, between guards. None of them may be touched yet.
    ///
    /// # Errors
    /// When the system has no addresses or no mappings left.
    pub fn reserve(n_bytes: usize) -> io::Result<Self> {
        let n_reserved = n_bytes + 2 * GUARD_BYTES;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at a place of the system's choice, without access.
        #[allow(unsafe_code)]
        let reserved = unsafe { mmap_anonymous(std::ptr::null_mut(), n_reserved, ProtFlags::empty(), flags)? };
        // No large pages. They would be zeroed whole for the few bytes that a call needs; and the kernel puts them
        // together by itself, so that pages become a VM's own without a fault. Where it has none it refuses, rightly.
        // SAFETY: advice on the mapping just made.
        #[allow(unsafe_code)]
        let _ = unsafe { madvise(reserved, n_reserved, Advice::LinuxNoHugepage) };
        Ok(Self { start: reserved.expose_provenance() + GUARD_BYTES, n_bytes })
    }

    /// How many there are.
    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// The address at an offset.
    pub fn at(&self, offset: usize) -> *mut c_void {
        std::ptr::with_exposed_provenance_mut(self.start + offset)
    }

    /// The addresses of a range of offsets.
    pub fn range(&self, range: Range<usize>) -> Range<usize> {
        self.start + range.start..self.start + range.end
    }

    /// The guard before the first address.
    pub fn guard_before(&self) -> Range<*mut c_void> {
        std::ptr::with_exposed_provenance_mut(self.start - GUARD_BYTES)..self.at(0)
    }

    /// Opens whole pages, or closes them. Nobody may have a reference into what is closed.
    ///
    /// # Errors
    /// When the system has no memory or no mappings left.
    pub fn protect(&mut self, range: Range<usize>, flags: MprotectFlags) -> io::Result<()> {
        // SAFETY: the range is this one's alone.
        #[allow(unsafe_code)]
        unsafe {
            mprotect(self.at(range.start), range.len(), flags)?;
        }
        Ok(())
    }

    /// Lets the system have the first `n_bytes`, whole pages; they begin anew when they are next touched. Nobody may
    /// have a reference into them.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn give_back(&mut self, n_bytes: usize) -> io::Result<()> {
        if n_bytes > 0 {
            // SAFETY: the range is this one's alone.
            #[allow(unsafe_code)]
            unsafe {
                madvise(self.at(0), n_bytes, Advice::LinuxDontNeed)?;
            }
        }
        Ok(())
    }
}

impl Drop for Addresses {
    fn drop(&mut self) {
        // SAFETY: the addresses are this one's alone, and who owned them is gone.
        #[allow(unsafe_code)]
        let unmapped = unsafe { munmap(self.guard_before().start, self.n_bytes + 2 * GUARD_BYTES) };
        if let Err(error) = unmapped {
            tracing::error!("addresses are lost: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn no_large_page_comes_of_itself() {
        if !Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            eprintln!("skipped: this kernel has no large pages of its own accord");
            return;
        }
        let addresses = Addresses::reserve(1 << 20).expect("has addresses");
        let wanted = addresses.range(0..1).start;
        let maps = fs::read_to_string("/proc/self/smaps").expect("is there");
        let begin = |line: &str| {
            let (start, end) = line.split_whitespace().next()?.split_once('-')?;
            let parse = |address| usize::from_str_radix(address, 16).ok();
            Some(parse(start)?..parse(end)?)
        };
        let mut lines = maps.lines().skip_while(|line| !begin(line).is_some_and(|range| range.contains(&wanted)));
        let flags = lines.find(|line| line.starts_with("VmFlags:")).expect("has flags");
        assert!(flags.split_whitespace().any(|flag| flag == "nh"), "{flags}");
    }
}

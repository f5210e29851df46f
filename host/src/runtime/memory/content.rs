//! What memories begin with: the bytes of the base image, held once for all VMs.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt};

use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create},
    mm::{MapFlags, ProtFlags, mmap, munmap},
};

use super::PAGE_BYTES;

/// The bytes of a memory, in a file that only this process has, and that nobody can change.
#[derive(Debug)]
pub struct Content {
    pub(super) file: File,
    /// Where the file is mapped, to be read.
    address: usize,
    n_bytes: usize,
}

impl Content {
    /// Keeps `bytes`, whole pages of them.
    ///
    /// # Errors
    /// When the system has no memory for them, or they are no whole pages.
    pub fn new(bytes: &[u8]) -> io::Result<Self> {
        if bytes.is_empty() || !bytes.len().is_multiple_of(PAGE_BYTES) {
            return Err(io::Error::other("a memory is whole pages"));
        }
        let file = File::from(memfd_create("neoc-base-image", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
        ftruncate(&file, bytes.len() as u64)?;
        // Pages of zeros stay holes.
        let mut runs: Vec<Range<usize>> = Vec::new();
        for (start, page) in (0..).step_by(PAGE_BYTES).zip(bytes.chunks(PAGE_BYTES)) {
            match runs.last_mut() {
                _ if page == [0; PAGE_BYTES] => {}
                Some(run) if run.end == start => run.end += PAGE_BYTES,
                _ => runs.push(start..start + PAGE_BYTES),
            }
        }
        runs.into_iter().try_for_each(|run| file.write_all_at(&bytes[run.clone()], run.start as u64))?;
        fcntl_add_seals(&file, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
        // SAFETY: a new mapping at a place of the system's choice.
        #[allow(unsafe_code)]
        let address = unsafe { mmap(std::ptr::null_mut(), bytes.len(), ProtFlags::READ, MapFlags::SHARED, &file, 0)? };
        Ok(Self { file, address: address.expose_provenance(), n_bytes: bytes.len() })
    }

    /// All of them.
    pub fn bytes(&self) -> &[u8] {
        let start = std::ptr::with_exposed_provenance(self.address);
        // SAFETY: `new` mapped so many bytes to be read, `drop` takes them away, and the seals keep the file from
        // becoming shorter or other.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts(start, self.n_bytes)
        }
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        // SAFETY: nobody has a reference to the bytes any more, because those borrow from this.
        #[allow(unsafe_code)]
        let unmapped = unsafe { munmap(std::ptr::with_exposed_provenance_mut(self.address), self.n_bytes) };
        if let Err(error) = unmapped {
            tracing::error!("the base image stays in memory: {error}");
        }
    }
}

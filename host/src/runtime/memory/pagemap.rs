//! Which pages of a private mapping are the process's own copies, by the kernel's page map.
//!
//! The call is `PAGEMAP_SCAN` of Linux 6.7 and newer, see ioctl_pagemap_scan(2). Without it nothing is known.

use std::{fs::File, io, mem::MaybeUninit, ops::Range, os::fd::AsRawFd};

/// `_IOWR('f', 16, struct pm_scan_arg)`, as in the kernel's linux/fs.h.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;

const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;

/// Most runs of pages that one scan tells of.
const MAX_RUNS: usize = 128;

/// The kernel's `struct pm_scan_arg`.
#[repr(C)]
struct ScanArguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    n_regions: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_any_of_mask: u64,
    return_mask: u64,
}

/// The kernel's `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// The page map of this process.
#[derive(Debug)]
pub struct PageMap(File);

/// What a scan found.
#[derive(Debug, PartialEq, Eq)]
pub enum Own {
    /// These, in order and apart from each other: offsets from the start of the range, in bytes.
    Runs(Vec<Range<usize>>),
    /// More runs than are worth knowing.
    Many,
}

impl PageMap {
    /// Opens it. None where the kernel has no such call.
    pub fn open() -> Option<Self> {
        let map = Self(File::open("/proc/self/pagemap").ok()?);
        map.own(0..0).is_ok().then_some(map)
    }

    /// The pages of `addresses` that are copies of this process's own: of a file's pages those that were written
    /// since they were mapped, and of all others those that are not zeros by never having been touched. Pages that
    /// are swapped out, or on their way to another place in memory, count.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn own(&self, addresses: Range<usize>) -> io::Result<Own> {
        let mut regions = [const { MaybeUninit::<Region>::uninit() }; MAX_RUNS];
        let mut arguments = ScanArguments {
            size: size_of::<ScanArguments>() as u64,
            flags: 0,
            start: addresses.start as u64,
            end: addresses.end as u64,
            walk_end: 0,
            regions: regions.as_mut_ptr().expose_provenance() as u64,
            n_regions: MAX_RUNS as u64,
            max_pages: 0,
            category_inverted: PAGE_IS_FILE | PAGE_IS_PFNZERO,
            category_mask: PAGE_IS_FILE | PAGE_IS_PFNZERO,
            // A page that is being moved looks as one that is swapped out.
            category_any_of_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            return_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        };
        // SAFETY: the kernel reads and writes `arguments`, whose layout is the kernel's own, and writes at most
        // `n_regions` regions. It only looks at `addresses`; nothing happens to what lies there.
        #[allow(unsafe_code)]
        let n_found = unsafe { libc::ioctl(self.0.as_raw_fd(), PAGEMAP_SCAN, &raw mut arguments) };
        let n_found = usize::try_from(n_found).map_err(|_| io::Error::last_os_error())?;
        if arguments.walk_end < arguments.end {
            return Ok(Own::Many);
        }
        let mut runs: Vec<Range<usize>> = Vec::with_capacity(n_found);
        for region in regions.iter().take(n_found) {
            // SAFETY: the kernel has written as many as it says.
            #[allow(unsafe_code)]
            let region = unsafe { region.assume_init() };
            let offset = |address: u64| usize::try_from(address).map(|address| address - addresses.start);
            let (Ok(start), Ok(end)) = (offset(region.start), offset(region.end)) else { return Ok(Own::Many) };
            match runs.last_mut() {
                // Two that differ in nothing that matters here.
                Some(run) if run.end == start => run.end = end,
                _ => runs.push(start..end),
            }
        }
        Ok(Own::Runs(runs))
    }
}

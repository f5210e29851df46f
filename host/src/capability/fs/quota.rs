//! How much a tenant's directories hold, and the bound on it.
//!
//! A directory that may be written to is an *area*, with all that lies below it; of granted directories that lie
//! within one another only the outermost is one, for tenants that share it too, so nothing is counted twice. An
//! area is counted when it is first written to, by walking through it. From then on each write and each removal
//! changes the count in the same step in which it changes the directory, under one lock, so that writers of the
//! same file cannot confuse it.
//!
//! The operator may change files at any time, and the count does not hear of it. So before a write is refused,
//! the areas are counted anew, unless that was done within [`RECOUNT_AFTER`]: room that was made is found then,
//! and what was added meanwhile is counted from then on.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use cap_std::fs::{Dir, Metadata};
use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};

use crate::{
    limits::{Exceeded, Owner},
    policy::{Limits, Tenant, fs::Access, shown_bytes},
};

/// How old a count may be on which a write is refused. Counting takes time, which a tenant at its limit must not
/// have for nothing.
const RECOUNT_AFTER: Duration = Duration::from_secs(10);

/// Why a write was not done.
#[derive(Debug)]
pub enum Failure {
    /// The system says so.
    Io(io::Error),
    /// The tenant's limit does.
    Over(Exceeded),
}

/// How much there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Of files.
    pub bytes: u64,
    /// Files, directories and links.
    pub files: u64,
}

/// The areas of all tenants, by their paths below the data folder.
pub struct Areas(BTreeMap<PathBuf, Arc<Area>>);

/// A directory that may be written to.
pub struct Area {
    dir: Dir,
    /// Absent before the first write.
    count: Mutex<Option<Count>>,
    /// Files that are being written. They count when they are done.
    unfinished: Mutex<HashSet<String>>,
}

#[derive(Debug, Clone, Copy)]
struct Count {
    size: Size,
    /// When it was made by walking.
    at: Instant,
}

/// The areas of one tenant, in the order of their paths, in which they are locked.
pub struct Quota {
    areas: Vec<Arc<Area>>,
    recount_after: Duration,
}

/// A file that is being written. It counts no more as such when this is dropped.
pub struct Unfinished<'a> {
    area: &'a Area,
    name: String,
}

// === impl Areas ===

impl Areas {
    /// The areas of the tenants' grants. Those that were there before go on with their counts. `open` is given
    /// the tenant, which of its grants it is, and the directory.
    ///
    /// # Errors
    /// What `open` fails with.
    pub fn open<E>(
        tenants: &[Arc<Tenant>],
        before: Option<&Self>,
        open: impl Fn(&Tenant, usize, &Path) -> Result<Dir, E>,
    ) -> Result<Self, E> {
        let all: BTreeSet<&Path> = tenants.iter().flat_map(|tenant| writable(tenant)).map(|(_, dir)| dir).collect();
        let mut areas = BTreeMap::new();
        for (tenant, (index, dir)) in tenants.iter().flat_map(|tenant| writable(tenant).map(move |dir| (tenant, dir))) {
            if outermost(&all, dir) != dir || areas.contains_key(dir) {
                continue;
            }
            let known = before.and_then(|before| before.0.get(dir)).map(Arc::clone);
            let area = match known {
                Some(area) => area,
                None => Arc::new(Area::new(open(tenant, index, dir)?)),
            };
            areas.insert(dir.to_path_buf(), area);
        }
        Ok(Self(areas))
    }

    /// No areas.
    pub fn none() -> Self {
        Self(BTreeMap::new())
    }

    /// Those of one tenant.
    pub fn quota(&self, tenant: &Tenant) -> Quota {
        let paths: BTreeSet<&Path> = writable(tenant).filter_map(|(_, dir)| self.path_of(dir)).collect();
        let areas = paths.into_iter().filter_map(|path| self.0.get(path).map(Arc::clone)).collect();
        Quota { areas, recount_after: RECOUNT_AFTER }
    }

    /// The one that a granted directory belongs to.
    pub fn area_of(&self, dir: &Path) -> Option<Arc<Area>> {
        self.path_of(dir).and_then(|path| self.0.get(path)).map(Arc::clone)
    }

    fn path_of<'a>(&self, dir: &'a Path) -> Option<&'a Path> {
        dir.ancestors().find(|path| self.0.contains_key(*path))
    }
}

/// A tenant's directories that may be written to, each with its place among the grants.
fn writable(tenant: &Tenant) -> impl Iterator<Item = (usize, &Path)> {
    let grants = tenant.allow.fs.iter().enumerate().filter(|(_, grant)| grant.access == Access::ReadWrite);
    grants.map(|(index, grant)| (index, grant.dir.as_path()))
}

fn outermost<'a>(all: &BTreeSet<&Path>, path: &'a Path) -> &'a Path {
    path.ancestors().filter(|ancestor| all.contains(ancestor)).last().unwrap_or(path)
}

// === impl Area ===

impl Area {
    fn new(dir: Dir) -> Self {
        Self { dir, count: Mutex::default(), unfinished: Mutex::default() }
    }

    /// Notes a file that is about to be written, under a name that no other has.
    pub fn begin(&self, name: String) -> Unfinished<'_> {
        self.unfinished.lock().insert(name.clone());
        Unfinished { area: self, name }
    }

    /// Its count, made now if there was none.
    fn lock(&self) -> io::Result<MappedMutexGuard<'_, Count>> {
        let mut count = self.count.lock();
        if count.is_none() {
            *count = Some(self.measure()?);
        }
        let locked = MutexGuard::try_map(count, Option::as_mut);
        locked.map_err(|_| io::Error::other("the directory has no count"))
    }

    fn measure(&self) -> io::Result<Count> {
        let at = Instant::now();
        let mut size = Size::default();
        let mut folders = vec![PathBuf::from(".")];
        while let Some(folder) = folders.pop() {
            let entries = match self.dir.read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) if folders.is_empty() && size == Size::default() => return Err(error),
                // Gone meanwhile, or out of reach for scripts too. It was counted as a directory.
                Err(_) => continue,
            };
            for entry in entries {
                let entry = entry?;
                let (name, Ok(metadata)) = (entry.file_name(), entry.metadata()) else { continue };
                if name.to_str().is_some_and(|name| self.unfinished.lock().contains(name)) {
                    continue;
                }
                size = size.plus(Size::of(&metadata));
                if metadata.is_dir() {
                    folders.push(folder.join(name));
                }
            }
        }
        Ok(Count { size, at })
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.area.unfinished.lock().remove(&self.name);
    }
}

// === impl Quota ===

impl Quota {
    /// Whether what lies in one place may become `after`, as far as can be said before it is written. `before`
    /// gives what lies there now.
    ///
    /// # Errors
    /// Over the limit `fs` or `fs_files`, or the directory cannot be counted.
    pub fn check(
        &self,
        limits: &Limits,
        before: impl FnOnce() -> io::Result<Size>,
        after: Size,
    ) -> Result<(), Failure> {
        let mut counts = self.lock()?;
        self.admit(&mut counts, limits, before()?, after)
    }

    /// Does what makes `after` of the place, if it may become that, and counts it.
    ///
    /// # Errors
    /// As [`Quota::check`], and what `act` fails with.
    pub fn change<T>(
        &self,
        area: &Arc<Area>,
        limits: &Limits,
        before: impl FnOnce() -> io::Result<Size>,
        after: Size,
        act: impl FnOnce() -> io::Result<T>,
    ) -> Result<T, Failure> {
        let mut counts = self.lock()?;
        let before = before()?;
        self.admit(&mut counts, limits, before, after)?;
        let done = act()?;
        let at = self.areas.iter().position(|other| Arc::ptr_eq(other, area));
        if let Some(count) = at.and_then(|at| counts.get_mut(at)) {
            count.size = count.size.minus(before).plus(after);
        }
        Ok(done)
    }

    /// Refuses what makes more of too much. A count that may be old is made anew first.
    fn admit(
        &self,
        counts: &mut [MappedMutexGuard<'_, Count>],
        limits: &Limits,
        before: Size,
        after: Size,
    ) -> Result<(), Failure> {
        let Err(exceeded) = fits(counts, limits, before, after) else { return Ok(()) };
        let mut is_anew = false;
        for (area, count) in self.areas.iter().zip(counts.iter_mut()) {
            if count.at.elapsed() >= self.recount_after {
                **count = area.measure()?;
                is_anew = true;
            }
        }
        if is_anew { Ok(fits(counts, limits, before, after)?) } else { Err(exceeded.into()) }
    }

    /// The counts of all areas, locked in one order for all tenants.
    fn lock(&self) -> io::Result<Vec<MappedMutexGuard<'_, Count>>> {
        self.areas.iter().map(|area| area.lock()).collect()
    }
}

fn fits(counts: &[MappedMutexGuard<'_, Count>], limits: &Limits, before: Size, after: Size) -> Result<(), Exceeded> {
    let used = counts.iter().fold(Size::default(), |sum, count| sum.plus(count.size));
    let now = used.minus(before).plus(after);
    if now.bytes > limits.fs_bytes && now.bytes > used.bytes {
        let exceeded = Exceeded::new(Owner::Tenant, "fs", shown_bytes(limits.fs_bytes));
        return Err(exceeded.what("bytes in its directories"));
    }
    if now.files > limits.fs_files && now.files > used.files {
        let exceeded = Exceeded::new(Owner::Tenant, "fs_files", limits.fs_files);
        return Err(exceeded.what("files in its directories"));
    }
    Ok(())
}

#[cfg(test)]
impl Quota {
    /// The quota of a tenant that has one directory.
    pub fn of_one(dir: Dir) -> (Arc<Area>, Self) {
        let area = Arc::new(Area::new(dir));
        (Arc::clone(&area), Self { areas: vec![area], recount_after: RECOUNT_AFTER })
    }

    pub fn let_counts_be_old(&mut self) {
        self.recount_after = Duration::ZERO;
    }

    pub fn n_areas(&self) -> usize {
        self.areas.len()
    }

    pub fn counted_and_real(&self) -> (Size, Size) {
        let counted = self.lock().expect("counts").iter().fold(Size::default(), |sum, count| sum.plus(count.size));
        let real = self.areas.iter().map(|area| area.measure().expect("counts").size);
        (counted, real.fold(Size::default(), Size::plus))
    }
}

// === impl Size, Failure ===

impl Size {
    /// Of what has this metadata.
    pub fn of(metadata: &Metadata) -> Self {
        Self { bytes: if metadata.is_dir() { 0 } else { metadata.len() }, files: 1 }
    }

    fn plus(self, other: Self) -> Self {
        Self { bytes: self.bytes.saturating_add(other.bytes), files: self.files.saturating_add(other.files) }
    }

    fn minus(self, other: Self) -> Self {
        Self { bytes: self.bytes.saturating_sub(other.bytes), files: self.files.saturating_sub(other.files) }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<io::ErrorKind> for Failure {
    fn from(kind: io::ErrorKind) -> Self {
        Self::Io(kind.into())
    }
}

impl From<Exceeded> for Failure {
    fn from(exceeded: Exceeded) -> Self {
        Self::Over(exceeded)
    }
}

//! The base image: the guest after its `init`, compiled once and kept on disk.
//!
//! `init` creates the Luau VM and its libraries. wasmtime-wizer runs it and writes the memory it
//! leaves into a new module, so that a fresh instance starts with the VM already there. Compiling
//! that module takes seconds, mapping the compiled file takes less than a millisecond; so the
//! compiled file is cached under a name that holds everything it depends on. Beside it are the bytes
//! that a VM's memory begins with.

mod data;
mod state;

use std::{
    fs::{self, File},
    hash::{Hash, Hasher},
    io::{self, Write},
    path::{Path, PathBuf},
    thread,
};

use wasmtime::{Engine, Linker, Module, Store};
use wasmtime_wasi::{WasiCtxBuilder, p1::WasiP1Ctx};
use wasmtime_wizer::Wizer;

pub use self::state::GLOBAL;
use super::{engine, memory::Content, safepoint};
use crate::policy::Preemption;

/// The guest as it was built by `guest/build.sh`.
pub const GUEST: &[u8] = include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../guest/build/neoc_guest.wasm"));

/// Why there is no base image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The cache folder cannot be used.
    #[error("cannot use the cache folder {}", path.display())]
    Cache {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The guest does not compile or its `init` fails.
    #[error("cannot build the base image from the guest")]
    Build(#[source] wasmtime::Error),
}

/// The guest after its `init`.
pub struct BaseImage {
    /// Its code, and the state that is not in memory.
    pub module: Module,
    /// Its memory.
    pub content: Content,
}

/// The files of an image are named by what they hold.
#[derive(Debug, PartialEq, Eq)]
struct Hashes {
    code: blake3::Hash,
    memory: blake3::Hash,
}

/// Gives the base image: from the cache when it holds a sound one, else built and put there.
///
/// # Errors
/// [`ImageError::Cache`] when the folder cannot be made or written, [`ImageError::Build`] when the
/// guest itself is broken.
pub fn load_or_build(
    engine: &Engine,
    guest: &[u8],
    preemption: Preemption,
    cache_dir: &Path,
) -> Result<BaseImage, ImageError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ImageError::Cache { path, source }
    };
    fs::create_dir_all(cache_dir).map_err(failed(cache_dir))?;
    // The key's file names the image's files by what they hold. So two processes that build at once, each
    // its own, never make files and hashes that do not belong together.
    let pointer = cache_dir.join(cache_key(engine, guest, preemption)).with_extension("blake3");
    if let Some(image) = load(engine, &pointer) {
        return Ok(image);
    }
    tracing::info!("compiling the base image; this happens once per version and machine");
    let (compiled, memory) = build(engine, guest, preemption).map_err(ImageError::Build)?;
    store(&pointer, &compiled, &memory).map_err(failed(&pointer))?;
    load(engine, &pointer)
        .ok_or_else(|| ImageError::Build(wasmtime::Error::msg("the image just written does not load")))
}

/// Compiles the guest as `init` leaves it. Gives its code and its memory.
fn build(engine: &Engine, guest: &[u8], preemption: Preemption) -> wasmtime::Result<(Vec<u8>, Vec<u8>)> {
    let snapshot = snapshot(&engine::build_plain(preemption)?, guest)?;
    let (code, memory) = data::take_out(&snapshot)?;
    let mut code = state::expose(&code)?;
    if preemption == Preemption::Safepoint {
        code = safepoint::instrument(&code)?;
    }
    Ok((engine.precompile_module(&code)?, memory))
}

/// Everything that the compiled code depends on: the guest, and wasmtime's version and settings.
fn cache_key(engine: &Engine, guest: &[u8], preemption: Preemption) -> String {
    struct Blake3(blake3::Hasher);
    impl Hasher for Blake3 {
        fn finish(&self) -> u64 {
            0 // The whole hash is read instead.
        }
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
    }
    let mut hasher = Blake3(blake3::Hasher::new());
    hasher.write(guest);
    // What is done to the guest before it is compiled.
    hasher.write(match preemption {
        Preemption::Safepoint => b"safepoint 3",
        Preemption::Epoch => b"epoch 3",
    });
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hasher.0.finalize().to_hex().to_string()
}

/// Maps a cached image. None when it is absent, corrupt or foreign; then it is rebuilt.
fn load(engine: &Engine, pointer: &Path) -> Option<BaseImage> {
    let hashes = Hashes::read(&fs::read_to_string(pointer).ok()?)?;
    let (code, content) = thread::scope(|scope| {
        let content = scope.spawn(|| load_content(&hashes.memory_path(pointer), hashes.memory));
        (verified(&hashes.code_path(pointer), hashes.code), content.join().ok().flatten())
    });
    let (file, content) = (code?, content?);
    // SAFETY: `deserialize_open_file` trusts the file to be what this engine wrote. Its hash was
    // just compared with the pointer's, over this same open file; the pointer's name is a hash of the
    // guest, the wasmtime version and the engine settings; and the folder belongs to the operator.
    #[allow(unsafe_code)]
    let module = unsafe { Module::deserialize_open_file(engine, file) };
    let module = module.inspect_err(|error| tracing::warn!("the cached base image does not load: {error:#}")).ok()?;
    Some(BaseImage { module, content })
}

/// Opens a file, if it has this hash.
fn verified(path: &Path, expected: blake3::Hash) -> Option<File> {
    let file = File::open(path).ok()?;
    // By pieces: to have all of it in memory would cost more than the hash.
    let found = blake3::Hasher::new().update_reader(&file).ok()?.finalize();
    (found == expected).then_some(file).or_else(|| reject(path))
}

/// The memory in a file, if it has this hash.
fn load_content(path: &Path, expected: blake3::Hash) -> Option<Content> {
    let memory = fs::read(path).ok()?;
    if blake3::hash(&memory) != expected {
        return reject(path);
    }
    Content::new(&memory).inspect_err(|error| tracing::warn!("the cached base image does not load: {error}")).ok()
}

fn reject<T>(path: &Path) -> Option<T> {
    tracing::warn!(path = %path.display(), "the cached base image is corrupt; building it again");
    None
}

/// Writes the image, then what points to it, so that a crash never leaves half of either.
fn store(pointer: &Path, code: &[u8], memory: &[u8]) -> io::Result<()> {
    let replace = |target: &Path, content: &[u8]| {
        let temporary = target.with_extension(format!("{}.tmp", std::process::id()));
        let mut file = File::create(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(temporary, target)
    };
    let hashes = Hashes { code: blake3::hash(code), memory: blake3::hash(memory) };
    replace(&hashes.code_path(pointer), code)?;
    replace(&hashes.memory_path(pointer), memory)?;
    replace(pointer, hashes.written().as_bytes())
}

impl Hashes {
    fn read(text: &str) -> Option<Self> {
        let (code, memory) = text.split_once('\n')?;
        Some(Self { code: blake3::Hash::from_hex(code).ok()?, memory: blake3::Hash::from_hex(memory).ok()? })
    }

    fn written(&self) -> String {
        format!("{}\n{}", self.code.to_hex(), self.memory.to_hex())
    }

    fn code_path(&self, pointer: &Path) -> PathBuf {
        pointer.with_file_name(self.code.to_hex().as_str()).with_extension("cwasm")
    }

    fn memory_path(&self, pointer: &Path) -> PathBuf {
        pointer.with_file_name(self.memory.to_hex().as_str()).with_extension("memory")
    }
}

/// Runs the guest's `init` and writes what it leaves into a module.
fn snapshot(engine: &Engine, guest: &[u8]) -> wasmtime::Result<Vec<u8>> {
    let mut linker: Linker<WasiP1Ctx> = Linker::new(engine);
    wasmtime_wasi::p1::add_to_linker_async(&mut linker, |wasi| wasi)?;
    let module = Module::new(engine, guest)?;
    // `init` has nobody to talk to: the guest's other imports trap.
    linker.define_unknown_imports_as_traps(&module)?;
    let mut store = Store::new(engine, WasiCtxBuilder::new().build_p1());
    store.set_epoch_deadline(u64::MAX / 2);
    let mut wizer = Wizer::new();
    wizer.init_func("init");
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(wizer.run(&mut store, guest, async |store, module| linker.instantiate_async(store, module).await))
}

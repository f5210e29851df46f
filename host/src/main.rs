//! The `neoc` command. Wires and reports; it decides nothing.

use std::process::ExitCode;

/// A request takes some thirty blocks, and each thread keeps its own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    neoc::cli::main()
}

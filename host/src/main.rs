//! The `neoc` command. Wires and reports; it decides nothing.

use std::process::ExitCode;

fn main() -> ExitCode {
    neoc::cli::main()
}

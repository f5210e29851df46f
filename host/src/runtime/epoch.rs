//! The epoch ticker: the clock that takes a running guest off its worker.
//!
//! An OS thread and not a Tokio task, because a task can starve behind the very work it must interrupt.

use std::{io, thread, time::Duration};

use wasmtime::Engine;

/// Length of a time slice: a guest runs at most this long before others get their turn.
pub const TICK: Duration = Duration::from_millis(5);

/// Starts the thread. It ends when the engine is dropped.
///
/// # Errors
/// When the process may not start another thread.
pub fn start(engine: &Engine) -> io::Result<()> {
    let engine = engine.weak();
    thread::Builder::new().name("neoc-epoch".into()).spawn(move || {
        loop {
            thread::sleep(TICK);
            let Some(engine) = engine.upgrade() else { return };
            engine.increment_epoch();
        }
    })?;
    Ok(())
}

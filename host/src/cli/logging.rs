//! Where the program's own words go: standard error, never waiting for its reader.

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{EnvFilter, fmt};

/// Lines that may wait for a slow reader; more are dropped.
const MAX_WAITING_LINES: usize = 16_384;

/// How lines look.
#[derive(Debug, Clone, Copy)]
pub enum Format {
    /// One JSON object a line, for `neoc host`. Control characters are escaped.
    Json,
    /// For a human who runs one command; only warnings and errors.
    Terse,
}

/// Starts logging. `NEOC_LOG` holds a filter such as `info,neoc::audit=debug`.
/// What is left unwritten is written when the guard is dropped.
pub fn start(format: Format) -> WorkerGuard {
    let (writer, guard) =
        NonBlockingBuilder::default().lossy(true).buffered_lines_limit(MAX_WAITING_LINES).finish(std::io::stderr());
    let default = match format {
        Format::Json => "info",
        Format::Terse => "warn",
    };
    let filter = EnvFilter::try_from_env("NEOC_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let lines = fmt().with_writer(writer).with_ansi(false).with_env_filter(filter);
    match format {
        Format::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).init(),
        Format::Terse => lines.without_time().with_target(false).init(),
    }
    guard
}

//! `neoc policy schema`

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use crate::policy::schema::schema;

/// Prints the schema.
pub fn main() -> crate::cli::Result {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &schema())?;
    out.write_all(b"\n")?;
    Ok(ExitCode::SUCCESS)
}

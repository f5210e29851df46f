//! Packed bodies.

use std::io::Write;

use flate2::{Compression, write::GzEncoder};

/// Twenty bytes of text.
pub const TEXT: &[u8] = b"a text of 20 bytes.\n";

/// Packs bytes.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

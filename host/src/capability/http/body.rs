//! The body of an answer: as it comes, or unpacked where the script has asked for that.

use std::io::Write;

use flate2::write::GzDecoder;
use http::{HeaderMap, header};
use neoc_abi::OperationError;

use crate::{
    limits::{Exceeded, Owner},
    policy::shown_bytes,
};

/// The policy key of a body's length.
const LIMIT: &str = "response_body";

/// Below this size a body may be packed as densely as it likes, in bytes.
const FREE_BYTES: usize = 1024 * 1024;

/// How many times larger than its packed form a larger body may be. Text seldom goes over 20.
const MAX_RATIO: usize = 100;

/// A body on its way.
pub struct BodyReader {
    kind: Kind,
    n_packed: usize,
}

enum Kind {
    Plain(Capped),
    Gzip(Box<GzDecoder<Capped>>),
}

/// Why there is no body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyError {
    /// Longer than it may be.
    TooLarge,
    /// Packed more densely than [`MAX_RATIO`].
    TooDense,
    /// No gzip, or cut off, or followed by something else.
    Broken,
    /// Packed in a way that nobody asked for.
    UnknownEncoding,
}

/// Bytes up to a most.
struct Capped {
    content: Vec<u8>,
    most: usize,
    /// Whether there were more.
    is_over: bool,
}

// === impl BodyReader ===

impl BodyReader {
    /// A reader for an answer with these headers, of at most so many bytes when they are unpacked. Headers that
    /// unpacking makes untrue are removed.
    ///
    /// # Errors
    /// [`BodyError::UnknownEncoding`].
    pub fn new(headers: &mut HeaderMap, decompress: bool, most: u64) -> Result<Self, BodyError> {
        let content = Capped { content: Vec::new(), most: usize::try_from(most).unwrap_or(usize::MAX), is_over: false };
        Ok(Self { kind: Kind::of(headers, decompress, content)?, n_packed: 0 })
    }

    /// Takes the next piece.
    ///
    /// # Errors
    /// See [`BodyError`].
    pub fn push(&mut self, piece: &[u8]) -> Result<(), BodyError> {
        self.n_packed += piece.len();
        match &mut self.kind {
            Kind::Plain(content) => content.write_all(piece).map_err(|_| BodyError::TooLarge),
            Kind::Gzip(decoder) => {
                // In small pieces, so that a bomb is noticed before it has filled the whole body.
                for piece in piece.chunks(4096) {
                    decoder.write_all(piece).map_err(|_| decoder_fault(decoder.get_ref()))?;
                    let n_unpacked = decoder.get_ref().content.len();
                    if n_unpacked > FREE_BYTES && n_unpacked > self.n_packed * MAX_RATIO {
                        return Err(BodyError::TooDense);
                    }
                }
                Ok(())
            }
        }
    }

    /// The whole body, at its end.
    ///
    /// # Errors
    /// See [`BodyError`].
    pub fn finish(self) -> Result<Vec<u8>, BodyError> {
        match self.kind {
            Kind::Plain(plain) => Ok(plain.content),
            // Some answers have an encoding and no body, such as that to a HEAD.
            Kind::Gzip(_) if self.n_packed == 0 => Ok(Vec::new()),
            Kind::Gzip(mut decoder) => {
                decoder.try_finish().map_err(|_| decoder_fault(decoder.get_ref()))?;
                decoder.finish().map(|unpacked| unpacked.content).map_err(|_| BodyError::Broken)
            }
        }
    }
}

fn decoder_fault(content: &Capped) -> BodyError {
    if content.is_over { BodyError::TooLarge } else { BodyError::Broken }
}

impl Kind {
    fn of(headers: &mut HeaderMap, decompress: bool, content: Capped) -> Result<Self, BodyError> {
        if !decompress {
            return Ok(Self::Plain(content));
        }
        let encodings: Vec<_> = headers.get_all(header::CONTENT_ENCODING).iter().collect();
        let gzip = match encodings.as_slice() {
            [] => false,
            [one] => match one.as_bytes().to_ascii_lowercase().as_slice() {
                b"gzip" | b"x-gzip" => true,
                b"identity" | b"" => false,
                // A list among them: packed twice is a bomb's way.
                _ => return Err(BodyError::UnknownEncoding),
            },
            _ => return Err(BodyError::UnknownEncoding),
        };
        if !gzip {
            return Ok(Self::Plain(content));
        }
        headers.remove(header::CONTENT_ENCODING);
        headers.remove(header::CONTENT_LENGTH);
        Ok(Self::Gzip(Box::new(GzDecoder::new(content))))
    }
}

// === impl BodyError ===

impl BodyError {
    /// What the script gets; `of` names the request, and `most` is the limit of its body.
    pub fn into_error(self, of: &str, most: u64) -> OperationError {
        match self {
            Self::TooLarge => Exceeded::new(Owner::Request, LIMIT, shown_bytes(most)).at(of),
            Self::TooDense => {
                let message = format!("{of}: the body is packed more than {MAX_RATIO} times, which is the most");
                OperationError::limit(LIMIT, message)
            }
            Self::Broken => OperationError::io(format!("{of}: the body is no whole gzip stream")),
            Self::UnknownEncoding => OperationError::io(format!("{of}: the body is packed, and not by gzip alone")),
        }
    }
}

impl Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if bytes.len() > self.most - self.content.len() {
            self.is_over = true;
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        self.content.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use flate2::{Compression, write::GzEncoder};
    use http::HeaderValue;

    use super::*;

    const MOST: usize = 10 << 20;

    fn packed(content: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(content).and_then(|()| encoder.finish()).expect("memory never fails")
    }

    fn read(encoding: &'static str, piece_bytes: usize, bytes: &[u8]) -> Result<Vec<u8>, BodyError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
        let mut reader = BodyReader::new(&mut headers, true, MOST as u64)?;
        bytes.chunks(piece_bytes).try_for_each(|piece| reader.push(piece))?;
        reader.finish()
    }

    #[test]
    fn gzip_is_unpacked_however_it_is_cut() {
        let content: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        for piece_bytes in [1, 7, 4096, usize::MAX] {
            assert_eq!(read("gzip", piece_bytes, &packed(&content)).as_ref(), Ok(&content), "{piece_bytes}");
        }
        assert_eq!(read("X-GZIP", 1, &packed(b"x")), Ok(b"x".to_vec()));
        assert_eq!(read("identity", 1, b"x"), Ok(b"x".to_vec()));
        assert_eq!(read("gzip", 1, b""), Ok(Vec::new()));
    }

    #[test]
    fn other_encodings_and_several_are_refused() {
        for encoding in ["br", "gzip, gzip", "deflate", "gzip,"] {
            assert_eq!(read(encoding, 1, b"x"), Err(BodyError::UnknownEncoding), "{encoding}");
        }
    }

    #[test]
    fn a_stream_that_is_cut_or_goes_on_is_refused() {
        let whole = packed(b"hello");
        for bytes in [&whole[..whole.len() - 1], &whole[..5], b"hello", &[&whole[..], b"more"].concat()] {
            for piece_bytes in [1, usize::MAX] {
                assert_eq!(read("gzip", piece_bytes, bytes), Err(BodyError::Broken), "{bytes:?}");
            }
        }
    }

    #[test]
    fn a_bomb_is_refused_long_before_its_end() {
        let bomb = packed(&vec![0; 64 << 20]);
        assert!(bomb.len() < 100_000, "{}", bomb.len());
        for piece_bytes in [100, usize::MAX] {
            assert_eq!(read("gzip", piece_bytes, &bomb), Err(BodyError::TooDense));
        }
    }

    #[test]
    fn a_body_has_its_full_length_and_not_a_byte_more() {
        for (n_bytes, expected) in [(MOST, Ok(())), (MOST + 1, Err(BodyError::TooLarge))] {
            let mut plain = BodyReader::new(&mut HeaderMap::new(), false, MOST as u64).expect("no encoding");
            let pushed = vec![1; n_bytes].chunks(1 << 20).try_for_each(|piece| plain.push(piece));
            assert_eq!(pushed, expected, "{n_bytes}");
        }
        // Random bytes do not pack, so only the length counts.
        let mut state = 1_u64;
        let noise = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u8
        });
        let content: Vec<u8> = noise.take(MOST + 1).collect();
        assert_eq!(read("gzip", 1 << 16, &packed(&content)), Err(BodyError::TooLarge));
        assert_eq!(read("gzip", 1 << 16, &packed(&content[1..])).map(|body| body.len()), Ok(MOST));
    }
}

//! The head of an answer, read strictly before hyper reads it.
//!
//! hyper takes some heads that other parsers read differently, such as lines that end in a bare line feed. An
//! answer like that is an attempt to be two answers, or a server that nobody should talk to; either way the
//! connection ends here.
//!
//! | refused | because |
//! |---|---|
//! | a line feed or carriage return alone, NUL | where a line ends must not be a matter of taste |
//! | a line that begins with a space or a tab | a folded header is one line to some and two to others |
//! | two `content-length`, or one beside a `transfer-encoding` | where the body ends must be said once |
//! | a `transfer-encoding` other than `chunked` | hyper would read to the end of the connection |
//! | more than 64 KiB, more than 8 interim answers, 101 | nobody asked for it |

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Longest head, with all interim answers, in bytes.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// A line that takes no more is room for the next one, also in the next answer.
const KEPT_LINE_BYTES: usize = 1024;

/// Most answers of status 1xx before the real one.
const MAX_INTERIM: usize = 8;

/// A stream whose answers' heads are looked at.
pub struct Checked<S> {
    stream: S,
    head: Head,
}

/// Says when a head is to come.
#[derive(Clone)]
pub struct Head(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Whether a head is being read; else the bytes are a body's.
    expected: bool,
    line: Vec<u8>,
    n_bytes: usize,
    n_lines: usize,
    n_interim: usize,
    is_interim: bool,
    /// Headers that say where the body ends.
    n_lengths: usize,
    n_encodings: usize,
}

// === impl Checked ===

impl<S> Checked<S> {
    /// Looks at what `stream` reads.
    pub fn new(stream: S) -> (Self, Head) {
        let head = Head(Arc::default());
        (Self { stream, head: head.clone() }, head)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Checked<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        std::task::ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let read = self.head.0.lock().read(&buffer.filled()[before..]);
        Poll::Ready(read.map_err(|what| io::Error::new(io::ErrorKind::InvalidData, what)))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Checked<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

// === impl Head ===

impl Head {
    /// From now on a head is expected.
    pub fn expect(&self) {
        self.0.lock().begin(0, 0);
    }
}

// === impl State ===

impl State {
    /// Expects a head, after interim ones of so many bytes.
    fn begin(&mut self, n_bytes: usize, n_interim: usize) {
        // Its room is used again.
        let line = std::mem::take(&mut self.line);
        *self = Self { expected: true, line, n_bytes, n_interim, ..Self::default() };
        self.line.clear();
    }

    fn read(&mut self, mut bytes: &[u8]) -> Result<(), &'static str> {
        while self.expected
            && let Some((first, after)) = bytes.split_first()
        {
            let is_plain = |byte: &u8| !matches!(byte, 0 | b'\r' | b'\n');
            if !is_plain(first) || self.line.last() == Some(&b'\r') {
                self.take(*first)?;
                bytes = after;
                continue;
            }
            let n_plain = bytes.iter().take_while(|byte| is_plain(byte)).count();
            let (plain, rest) = bytes.split_at(n_plain);
            self.count(n_plain)?;
            self.line.extend_from_slice(plain);
            bytes = rest;
        }
        Ok(())
    }

    fn count(&mut self, n_bytes: usize) -> Result<(), &'static str> {
        self.n_bytes += n_bytes;
        if self.n_bytes > MAX_HEAD_BYTES { Err("the head is too large") } else { Ok(()) }
    }

    /// Takes a byte where it matters which one it is.
    fn take(&mut self, byte: u8) -> Result<(), &'static str> {
        self.count(1)?;
        match (self.line.last(), byte) {
            (_, 0) => Err("a zero byte in the head"),
            (Some(b'\r'), b'\n') => {
                let mut line = std::mem::take(&mut self.line);
                line.pop();
                self.end_line(&line)?;
                if line.capacity() <= KEPT_LINE_BYTES {
                    line.clear();
                    self.line = line;
                }
                Ok(())
            }
            (Some(b'\r'), _) | (_, b'\n') => Err("a line that does not end in CRLF"),
            _ => {
                self.line.push(byte);
                Ok(())
            }
        }
    }

    fn end_line(&mut self, line: &[u8]) -> Result<(), &'static str> {
        self.n_lines += 1;
        if self.n_lines == 1 {
            let status = line.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
            self.is_interim = status.starts_with(b"1");
            return if status == b"101" { Err("a switch of protocols that nobody asked for") } else { Ok(()) };
        }
        if line.is_empty() {
            return self.end_head();
        }
        if line.starts_with(b" ") || line.starts_with(b"\t") {
            return Err("a header that goes on in the next line");
        }
        let (name, value) = line.split_at(line.iter().position(|byte| *byte == b':').unwrap_or(line.len()));
        if name.eq_ignore_ascii_case(b"content-length") {
            self.n_lengths += 1;
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.n_encodings += 1;
            if !value
                .trim_ascii_end()
                .strip_prefix(b":")
                .is_some_and(|value| value.trim_ascii().eq_ignore_ascii_case(b"chunked"))
            {
                return Err("a transfer encoding other than chunked");
            }
        }
        if self.n_lengths + self.n_encodings > 1 { Err("the length of the body is said twice") } else { Ok(()) }
    }

    fn end_head(&mut self) -> Result<(), &'static str> {
        let Self { is_interim, n_bytes, n_interim, .. } = *self;
        if !is_interim {
            self.expected = false;
            return Ok(());
        }
        if n_interim == MAX_INTERIM {
            return Err("too many interim answers");
        }
        self.begin(n_bytes, n_interim + 1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads the bytes whole, and one by one; gives what is wrong with them.
    fn read(bytes: &[u8]) -> Option<&'static str> {
        let expecting = || State { expected: true, ..State::default() };
        let (mut whole, mut single) = (expecting(), expecting());
        let outcome = whole.read(bytes);
        assert_eq!(bytes.iter().try_for_each(|byte| single.read(&[*byte])), outcome);
        outcome.err()
    }

    #[test]
    fn plain_heads_pass_and_bodies_are_not_looked_at() {
        for text in [
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\na\nb\0\r\r\n c",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding:  Chunked \r\n\r\n1\r\na\r\n0\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nlink: x\r\n\r\nHTTP/1.1 204 x\r\n\r\n",
            "HTTP/1.0 200\r\nx:\r\n\r\n",
        ] {
            assert_eq!(read(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn heads_that_can_be_read_twice_are_refused() {
        let flood = "HTTP/1.1 100 x\r\n\r\n".repeat(MAX_INTERIM + 1);
        let large = format!("HTTP/1.1 200 {}", "x".repeat(MAX_HEAD_BYTES));
        for (text, what) in [
            ("HTTP/1.1 200\nfoo", "a line that does not end in CRLF"),
            ("HTTP/1.1 200 x\r\na: b\nc: d\r\n\r\n", "a line that does not end in CRLF"),
            ("HTTP/1.1 200 x\r\na: b\rc: d\r\n\r\n", "a line that does not end in CRLF"),
            ("HTTP/1.1 200 x\r\na: \0\r\n\r\n", "a zero byte in the head"),
            ("HTTP/1.1 200 x\r\na: b\r\n c: d\r\n\r\n", "a header that goes on in the next line"),
            ("HTTP/1.1 200 x\r\ncontent-length: 1\r\nContent-Length: 1\r\n", "the length of the body is said twice"),
            (
                "HTTP/1.1 200 x\r\ntransfer-encoding: chunked\r\ncontent-length: 1\r\n",
                "the length of the body is said twice",
            ),
            ("HTTP/1.1 200 x\r\ntransfer-encoding: xchunked\r\n", "a transfer encoding other than chunked"),
            ("HTTP/1.1 200 x\r\ntransfer-encoding: gzip, chunked\r\n", "a transfer encoding other than chunked"),
            ("HTTP/1.1 200 x\r\ntransfer-encoding\r\n", "a transfer encoding other than chunked"),
            ("HTTP/1.1 101 x\r\n", "a switch of protocols that nobody asked for"),
            (&flood, "too many interim answers"),
            (&large, "the head is too large"),
        ] {
            assert_eq!(read(text.as_bytes()), Some(what), "{text:.60}");
        }
    }

    #[test]
    fn two_lengths_in_different_answers_are_no_contradiction() {
        let mut state = State::default();
        for _ in 0..2 {
            state = State { expected: true, ..state };
            let head = Head(Arc::new(Mutex::new(state)));
            head.expect();
            state = std::mem::take(&mut head.0.lock());
            assert_eq!(state.read(b"HTTP/1.1 200 x\r\ncontent-length: 0\r\n\r\n"), Ok(()));
        }
    }
}

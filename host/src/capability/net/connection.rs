//! A stream of bytes: one reader and one writer at once.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use neoc_abi::{
    OperationError,
    net::{DEFAULT_BYTES, Reply, Stopped, Want},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::{Mutex, Semaphore},
};

use super::{busy, closed, failed, within};
use crate::{
    broker::{self, Traffic},
    capability::connect::Stream,
};

/// Most bytes that are read ahead of what a script has asked for.
const READ_AHEAD_BYTES: usize = 8 * 1024;

/// An open connection.
pub struct Connection {
    reader: Mutex<Reader>,
    writer: Mutex<Writer>,
    closing: Semaphore,
    _slot: broker::Connection,
}

struct Reader {
    half: ReadHalf<Stream>,
    /// What was read and not yet given to the script.
    buffer: BytesMut,
    /// Whether the other end will send nothing more.
    ended: bool,
}

struct Writer {
    half: WriteHalf<Stream>,
    ended: bool,
}

/// Closes a connection, unless it is told that all went well.
struct CloseOnDrop<'a>(Option<&'a Connection>);

// === impl Connection ===

impl Connection {
    /// A fresh connection, which holds a slot among the tenant's.
    pub fn new(stream: Stream, slot: broker::Connection) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self {
            reader: Mutex::new(Reader { half: reader, buffer: BytesMut::new(), ended: false }),
            writer: Mutex::new(Writer { half: writer, ended: false }),
            // Its one use is to be closed.
            closing: Semaphore::new(0),
            _slot: slot,
        }
    }

    /// Ends whatever is under way, now and later.
    pub fn close(&self) {
        self.closing.close();
    }

    /// Reads. A stop on the way leaves what has come for the next read.
    ///
    /// # Errors
    /// `closed`, `busy`, `limit` for a line that is too long and for the request's bytes, `io`; all but the first
    /// two and the long line close the connection.
    pub async fn read(
        &self,
        want: Want,
        timeout: Option<Duration>,
        traffic: &Traffic,
    ) -> Result<Reply, OperationError> {
        let mut reader = self.reader.try_lock().map_err(|_| busy("reading"))?;
        let filled = tokio::select! {
            biased;
            _ = self.closing.acquire() => return Err(closed()),
            filled = within(timeout, reader.fill(want, traffic)) => filled,
        };
        match filled {
            Some(Err(error)) => {
                self.close();
                Err(error)
            }
            filled => reader.take(want, filled.is_none()),
        }
    }

    /// Writes all of it. A stop on the way closes the connection.
    ///
    /// # Errors
    /// `closed`, `busy`, `timeout`, `io`; the last two close the connection.
    pub async fn write(&self, bytes: &[u8], timeout: Option<Duration>) -> Result<(), OperationError> {
        let mut writer = self.writer.try_lock().map_err(|_| busy("writing"))?;
        if writer.ended {
            return Err(closed());
        }
        let mut stopped = CloseOnDrop(Some(self));
        let written = tokio::select! {
            biased;
            _ = self.closing.acquire() => return Err(closed()),
            written = within(timeout, writer.write(bytes)) => written,
        };
        written
            .ok_or_else(|| OperationError::timeout("net: not all was written in time; the connection is closed"))?
            .map_err(|error| failed(&error))?;
        stopped.0 = None;
        Ok(())
    }

    /// Says that nothing more will be written.
    ///
    /// # Errors
    /// `closed`, `busy`, `io`.
    pub async fn shutdown(&self) -> Result<(), OperationError> {
        let mut writer = self.writer.try_lock().map_err(|_| busy("writing"))?;
        writer.ended = true;
        tokio::select! {
            biased;
            _ = self.closing.acquire() => Err(closed()),
            ended = writer.half.shutdown() => ended.map_err(|error| failed(&error)),
        }
    }
}

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.0 {
            connection.close();
        }
    }
}

// === impl Reader ===

impl Reader {
    /// Reads until there is what is wanted, or nothing more will come.
    async fn fill(&mut self, want: Want, traffic: &Traffic) -> Result<(), OperationError> {
        while !self.ended && !self.has(want) {
            self.buffer.reserve(READ_AHEAD_BYTES);
            // Stopped here, it has read nothing.
            let n_bytes = self.half.read_buf(&mut self.buffer).await.map_err(|error| failed(&error))?;
            self.ended = n_bytes == 0;
            traffic.receive(n_bytes).map_err(|over| over.at("net"))?;
        }
        Ok(())
    }

    fn has(&self, want: Want) -> bool {
        let n_bytes = self.buffer.len();
        match want {
            Want::Any => n_bytes > 0,
            Want::Exactly(n) => n_bytes >= to_usize(n),
            Want::Line(most) => n_bytes > to_usize(most) + "\r\n".len() || self.buffer.contains(&b'\n'),
        }
    }

    /// Gives what there is of what is wanted. `timed_out`: the wait for it was given up.
    fn take(&mut self, want: Want, timed_out: bool) -> Result<Reply, OperationError> {
        let (n_bytes, n_end) = match want {
            Want::Any => (self.buffer.len().min(to_usize(DEFAULT_BYTES)), 0),
            Want::Exactly(n) => (self.buffer.len().min(to_usize(n)), 0),
            Want::Line(most) => self.line(to_usize(most))?,
        };
        let is_whole = self.has(want);
        let bytes = self.buffer.split_to(n_bytes).to_vec();
        self.buffer.advance(n_end);
        let stopped = match (is_whole, timed_out) {
            (true, _) => None,
            (false, true) => Some(Stopped::Timeout),
            (false, false) => Some(Stopped::Closed),
        };
        Ok(Reply::Read { bytes, stopped })
    }

    /// How long the line at the front is, and its end.
    fn line(&self, most: usize) -> Result<(usize, usize), OperationError> {
        let end = self.buffer.iter().position(|byte| *byte == b'\n');
        let (n_bytes, n_end) = match end {
            Some(end) if self.buffer[..end].ends_with(b"\r") => (end - 1, 2),
            Some(end) => (end, 1),
            None => (self.buffer.len(), 0),
        };
        if n_bytes > most {
            return Err(OperationError::limit("line", format!("net: the line is longer than {most} bytes")));
        }
        Ok((n_bytes, n_end))
    }
}

// === impl Writer ===

impl Writer {
    async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.half.write_all(bytes).await?;
        // TLS keeps what it could not pass on.
        self.half.flush().await
    }
}

fn to_usize(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

//! `std:net`: connections and datagrams.

use serde::{Deserialize, Serialize};

/// Most bytes of one read or write.
pub const MAX_BYTES: usize = 1024 * 1024;

/// Longest line, and what a read gives at most, unless the script says otherwise, in bytes.
pub const DEFAULT_BYTES: u32 = 64 * 1024;

/// Longest datagram, in bytes: what fits into one of IPv4.
pub const MAX_DATAGRAM_BYTES: usize = 65_507;

/// What a script asks of the network. A handle is a number that the host gave to the same VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Open a connection to `tcp://host:port` or `tls://host:port`, or a socket to `udp://host:port`.
    Open {
        /// Which of the two the script's function is for.
        kind: Kind,
        /// As the script wrote it. The host parses it once and decides on what it parsed.
        target: String,
        /// For resolving, connecting and the TLS handshake, in milliseconds. Absent: 5 s.
        timeout_ms: Option<u64>,
    },
    /// Read from a connection.
    Read {
        /// The connection.
        handle: u32,
        /// How much.
        want: Want,
        /// In milliseconds. Absent: as long as the request lasts.
        timeout_ms: Option<u64>,
    },
    /// Write to a connection.
    Write {
        /// The connection.
        handle: u32,
        /// 0 to [`MAX_BYTES`].
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
        /// In milliseconds. Absent: as long as the request lasts.
        timeout_ms: Option<u64>,
    },
    /// Say that nothing more will be written.
    Shutdown {
        /// The connection.
        handle: u32,
    },
    /// Send a datagram.
    Send {
        /// The socket.
        handle: u32,
        /// 0 to [`MAX_DATAGRAM_BYTES`].
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// Receive a datagram.
    Receive {
        /// The socket.
        handle: u32,
        /// In milliseconds. Absent: as long as the request lasts.
        timeout_ms: Option<u64>,
    },
    /// Close either. Answered at once.
    Close {
        /// What to close.
        handle: u32,
    },
}

/// What a handle is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A stream of bytes, by TCP or TLS.
    Connection,
    /// Datagrams, by UDP.
    Socket,
}

/// How much a read waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Want {
    /// What comes first, at most [`DEFAULT_BYTES`].
    Any,
    /// So many bytes, 1 to [`MAX_BYTES`].
    Exactly(u32),
    /// Bytes up to a line feed, at most so many, 1 to [`MAX_BYTES`]. Its end is not given.
    Line(u32),
}

/// A reply to [`Operation`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To [`Operation::Open`].
    Opened {
        /// What later operations name.
        handle: u32,
    },
    /// To [`Operation::Read`].
    Read {
        /// What came; less than was asked for when it stopped early.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
        /// Why it stopped early.
        stopped: Option<Stopped>,
    },
    /// To [`Operation::Receive`]. Absent: the time was up.
    Datagram(Option<serde_bytes::ByteBuf>),
    /// To all others.
    Done,
}

/// Why a read gave less than was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stopped {
    /// The time was up. The connection is as good as before.
    Timeout,
    /// The other end will send nothing more.
    Closed,
}

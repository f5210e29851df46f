//! An upstream that breaks the rules of HTTP; the path says which.

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

/// A running upstream. Its threads end with the test process.
pub struct Hostile {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
    open: Arc<AtomicUsize>,
}

/// A request that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The number of the connection, from 0 on.
    pub connection: usize,
    pub path: String,
}

impl Hostile {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, seen) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<Request>>>::default());
        let (shared, open) = (Arc::clone(&seen), Arc::<AtomicUsize>::default());
        let counter = Arc::clone(&open);
        thread::spawn(move || {
            for (connection, stream) in listener.incoming().map_while(Result::ok).enumerate() {
                let (seen, open) = (Arc::clone(&shared), Arc::clone(&counter));
                open.fetch_add(1, Ordering::SeqCst);
                thread::spawn(move || {
                    // A client that has had enough goes away.
                    let _ = serve(stream, connection, &seen);
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, seen, open }
    }

    /// Connections that are open.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// The requests so far, in order.
    pub fn requests(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }
}

fn serve(mut stream: TcpStream, connection: usize, seen: &Mutex<Vec<Request>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut head = String::new();
        while reader.read_line(&mut head)? > 2 {}
        let Some(path) = head.split(' ').nth(1).map(str::to_owned) else { return Ok(()) };
        seen.lock().unwrap().push(Request { connection, path: path.clone() });
        answer(&path, &mut stream)?;
        if path != "/ok" && path != "/long" && path != "/pipelined" {
            return Ok(());
        }
    }
}

fn answer(path: &str, stream: &mut TcpStream) -> std::io::Result<()> {
    const OK: &str = "HTTP/1.1 200 OK\r\n";
    let whole = |text: String| text.into_bytes();
    let bytes = match path {
        "/ok" => whole(format!("{OK}content-length: 2\r\n\r\nok")),
        // HTTP-01
        "/endless-headers" => return for_ever(stream, OK, |n| format!("x-{n}: y\r\n")),
        "/slow-headers" => {
            return for_ever(stream, OK, |_| {
                thread::sleep(Duration::from_millis(20));
                "x".to_owned()
            });
        }
        "/many-headers" => {
            let headers: String = (0..101).map(|n| format!("x-{n}: y\r\n")).collect();
            whole(format!("{OK}{headers}content-length: 0\r\n\r\n"))
        }
        "/large-header" => whole(format!("{OK}x: {}\r\ncontent-length: 0\r\n\r\n", "y".repeat(64 * 1024))),
        "/large-status" => return for_ever(stream, "HTTP/1.1 200 ", |_| "x".repeat(1024)),
        // HTTP-02
        "/endless-body" => {
            let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
            return for_ever(stream, &format!("{OK}transfer-encoding: chunked\r\n\r\n"), |_| chunk.clone());
        }
        "/tiny-chunks" => {
            let chunks = "1\r\nx\r\n".repeat(100);
            return for_ever(stream, &format!("{OK}transfer-encoding: chunked\r\n\r\n"), |_| chunks.clone());
        }
        "/large-extension" => {
            whole(format!("{OK}transfer-encoding: chunked\r\n\r\n1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(1024 * 1024)))
        }
        "/huge-chunk" => whole(format!("{OK}transfer-encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\nx")),
        "/many-trailers" => {
            let trailers: String = (0..10_000).map(|n| format!("x-{n}: y\r\n")).collect();
            whole(format!("{OK}transfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n{trailers}\r\n"))
        }
        // HTTP-04
        "/stalls" => {
            stream.write_all(format!("{OK}content-length: 10\r\n\r\nabc").as_bytes())?;
            return hold(stream);
        }
        "/short" => whole(format!("{OK}content-length: 10\r\n\r\nabcde")),
        "/long" => whole(format!("{OK}content-length: 10\r\n\r\n0123456789abcde")),
        "/half-a-head" => whole("HTTP/1.1 200 OK\r\ncontent-le".to_owned()),
        "/reset" => {
            stream.write_all(format!("{OK}content-length: 10\r\n\r\nabc").as_bytes())?;
            // Closing with bytes of the client unread would do the same; this does it for certain.
            return tokio::net::TcpSocket::from_std_stream(stream.try_clone()?).set_zero_linger();
        }
        // HTTP-05
        "/split-status" => whole("HTTP/1.1 200\nfoo: bar\r\ncontent-length: 0\r\n\r\n".to_owned()),
        "/bare-line-feed" => whole(format!("{OK}a: b\nc: d\r\ncontent-length: 0\r\n\r\n")),
        "/zero-byte" => whole(format!("{OK}a: b\0c\r\ncontent-length: 0\r\n\r\n")),
        "/two-lengths" => whole(format!("{OK}content-length: 2\r\ncontent-length: 3\r\n\r\nabc")),
        "/length-twice" => whole(format!("{OK}content-length: 3\r\ncontent-length: 3\r\n\r\nabc")),
        "/length-and-chunks" => whole(format!("{OK}content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n")),
        "/unknown-coding" => whole(format!("{OK}transfer-encoding: xchunked\r\n\r\n0\r\n\r\n")),
        "/interim-flood" => return for_ever(stream, "", |_| "HTTP/1.1 100 Continue\r\n\r\n".to_owned()),
        "/switch" => whole("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n".to_owned()),
        "/http-0.9" => whole("hello".to_owned()),
        // HTTP-06
        "/pipelined" => whole(format!("{OK}content-length: 2\r\n\r\nok{OK}content-length: 6\r\n\r\nSTOLEN")),
        // HTTP-09
        "/silent" => return hold(stream),
        other => panic!("no such path: {other}"),
    };
    stream.write_all(&bytes)
}

/// Writes until the client has had enough.
fn for_ever(stream: &mut TcpStream, head: &str, mut next: impl FnMut(usize) -> String) -> std::io::Result<()> {
    stream.write_all(head.as_bytes())?;
    for n in 0.. {
        stream.write_all(next(n).as_bytes())?;
    }
    Ok(())
}

/// Says nothing until the client closes.
fn hold(stream: &mut TcpStream) -> std::io::Result<()> {
    std::io::copy(stream, &mut std::io::sink()).map(drop)
}

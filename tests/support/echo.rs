//! Echoes, by TCP and UDP on one port.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// Where it listens unless it is said otherwise.
pub const LOOPBACK: &str = "127.0.0.1";

/// A running server that sends back what it gets. Its threads end with the test process.
pub struct Echo {
    pub address: SocketAddr,
    open: Arc<AtomicUsize>,
    opened: Arc<AtomicUsize>,
}

impl Echo {
    pub fn start() -> Self {
        Self::on(LOOPBACK)
    }

    /// As [`Echo::start`], on an address of this machine.
    pub fn on(address: &str) -> Self {
        let (tcp, udp) = bind(address);
        let address = tcp.local_addr().unwrap();
        let (open, opened) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (now, ever) = (Arc::clone(&open), Arc::clone(&opened));
        thread::spawn(move || {
            for stream in tcp.incoming().map_while(Result::ok) {
                ever.fetch_add(1, Ordering::SeqCst);
                now.fetch_add(1, Ordering::SeqCst);
                let now = Arc::clone(&now);
                thread::spawn(move || {
                    let _ = echo(stream);
                    now.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        thread::spawn(move || datagrams(&udp));
        Self { address, open, opened }
    }

    /// TCP connections that are open.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// TCP connections so far.
    pub fn opened(&self) -> usize {
        self.opened.load(Ordering::SeqCst)
    }
}

/// A listener and a socket on the same port of an address.
pub fn bind(address: &str) -> (TcpListener, UdpSocket) {
    loop {
        let tcp = TcpListener::bind((address, 0)).unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()) {
            return (tcp, udp);
        }
    }
}

/// Sends back what it gets.
pub fn datagrams(socket: &UdpSocket) {
    let mut buffer = [0; 65_536];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        let _ = socket.send_to(&buffer[..length], from);
    }
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..length])?;
    }
}

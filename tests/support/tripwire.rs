//! Listeners where nothing may arrive.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use super::wait_until;

/// One port on some addresses, by TCP and UDP, that remembers who came.
pub struct Tripwire {
    pub port: u16,
    /// One that is watched for certain.
    address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Tripwire {
    /// Listens on every address of the machine, in both families. Its threads end with the test process.
    pub fn everywhere() -> Self {
        (0..100)
            .find_map(|_| {
                // On Linux the IPv6 one serves both families; where there is no IPv6, the other does alone.
                let listener = TcpListener::bind("[::]:0").or_else(|_| TcpListener::bind("0.0.0.0:0")).ok()?;
                let port = listener.local_addr().ok()?.port();
                let socket = UdpSocket::bind(("::", port)).or_else(|_| UdpSocket::bind(("0.0.0.0", port))).ok()?;
                Some(Self::watching(SocketAddr::from(([127, 0, 0, 1], port)), vec![(listener, socket)]))
            })
            .expect("a port that is free for all")
    }

    /// Listens on these addresses, as far as the machine has them; the first is one that it has.
    pub fn on(addresses: &[&str], port: u16) -> Self {
        let bind = |address: &&str| {
            let address: IpAddr = address.parse().unwrap();
            Some((TcpListener::bind((address, port)).ok()?, UdpSocket::bind((address, port)).ok()?))
        };
        let first = bind(&addresses[0]).expect("the port is free");
        let address = first.0.local_addr().unwrap();
        Self::watching(address, std::iter::once(first).chain(addresses[1..].iter().filter_map(bind)).collect())
    }

    fn watching(address: SocketAddr, pairs: Vec<(TcpListener, UdpSocket)>) -> Self {
        let seen = Arc::<Mutex<Vec<String>>>::default();
        for (listener, socket) in pairs {
            let (by_tcp, by_udp) = (Arc::clone(&seen), Arc::clone(&seen));
            thread::spawn(move || watch_tcp(&listener, &by_tcp));
            thread::spawn(move || watch_udp(&socket, &by_udp));
        }
        Self { port: address.port(), address, seen }
    }

    /// Fails if anything came. What came before is noticed before what this sends itself.
    pub fn check(&self) {
        TcpStream::connect(self.address).unwrap().write_all(PROBE).unwrap();
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(PROBE, self.address).unwrap();
        let n_probes = || self.seen.lock().unwrap().iter().filter(|text| is_probe(text)).count();
        wait_until("the tripwire's own probes", || n_probes() == 2);
        let seen = self.seen.lock().unwrap();
        let others: Vec<_> = seen.iter().filter(|text| !is_probe(text)).cloned().collect();
        assert!(others.is_empty(), "something was sent to where nothing may go:\n{}", others.join("\n"));
    }
}

const PROBE: &[u8] = b"a probe of the test's own";

fn is_probe(text: &str) -> bool {
    text.contains("a probe of the test's own")
}

fn watch_tcp(listener: &TcpListener, seen: &Mutex<Vec<String>>) {
    for mut stream in listener.incoming().map_while(Result::ok) {
        let to = stream.local_addr().map(|address| address.to_string()).unwrap_or_default();
        let mut text = [0; 100];
        let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
        let length = stream.read(&mut text).unwrap_or(0);
        seen.lock().unwrap().push(format!("tcp {to}: {:?}", String::from_utf8_lossy(&text[..length])));
    }
}

fn watch_udp(socket: &UdpSocket, seen: &Mutex<Vec<String>>) {
    let mut text = [0; 100];
    while let Ok((length, from)) = socket.recv_from(&mut text) {
        seen.lock().unwrap().push(format!("udp from {from}: {:?}", String::from_utf8_lossy(&text[..length])));
    }
}

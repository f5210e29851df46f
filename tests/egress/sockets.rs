//! `std:net`: what a connection does when it is read, written, cancelled, closed, used elsewhere.

use std::{
    fs,
    io::Write,
    net::{SocketAddr, TcpListener, UdpSocket},
    thread,
};

use super::Lab;
use crate::support::{echo::Echo, host::Host, wait_until};

/// Runs a script that may reach `address` by TCP and UDP; gives what it printed. `...` in it is the address.
fn print(address: SocketAddr, script: &str) -> String {
    let text = address.to_string();
    Lab::with_script(&format!("{HEAD}{script}"), &grants(address), address).print(&[&text])
}

const HEAD: &str = r#"
local net, task = require("std:net"), require("std:task")
local address = ...
local function why(f, ...)
    local ok, err = pcall(f, ...)
    return if ok then "ok" elseif type(err) == "table" then err.kind .. " " .. (err.limit or "-") else tostring(err)
end
"#;

fn grants(address: SocketAddr) -> String {
    format!(
        "[[tenant.t.allow.net]]\nhosts = [\"tcp://{address}\", \"udp://{address}\"]\naddresses = [\"127.0.0.0/8\"]\n"
    )
}

/// A server that does this with its first client.
fn once(serve: impl FnOnce(std::net::TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        if let Ok((stream, _)) = listener.accept() {
            serve(stream);
        }
    });
    address
}

#[test]
fn bytes_and_lines_are_read_as_they_are_asked_for() {
    let address = once(|mut stream| {
        stream.write_all(b"first\r\nsecond\n\nabcdefgh").unwrap();
        stream.write_all(&[b'x'; 100]).unwrap();
        stream.write_all(b"\nend").unwrap();
    });
    let printed = print(
        address,
        r#"
        local connection = net.connect(`tcp://{address}`)
        print(connection, connection:read_line())
        print(connection:read_line())
        print(connection:read_line())
        print(connection:read(3))
        print(connection:read(5))
        print(why(connection.read_line, connection, 99))
        print(#connection:read_line(100))
        print(connection:read_line())
        print(connection:read_line())
        print(connection:read(1))
        print(connection:read())
        "#,
    );
    let expected = "connection\tfirst\tnil\nsecond\tnil\n\tnil\nabc\tnil\ndefgh\tnil\nlimit line\n100\nend\tclosed\nnil\tclosed\nnil\tclosed\nnil\tclosed\n";
    assert_eq!(printed, expected);
}

#[test]
fn a_read_that_times_out_gives_what_there_is_and_hurts_nothing() {
    let echo = Echo::start();
    let printed = print(
        echo.address,
        r#"
        local connection = net.connect(`tcp://{address}`)
        print(connection:read(10, 0.05))
        connection:write("abc")
        print(connection:read(10, 0.2))
        connection:write("half")
        print(connection:read_line(nil, 0.2))
        connection:write("whole\n")
        print(connection:read_line())
        print(connection:read(1, 0))
        connection:shutdown()
        print(connection:read())
        print(why(connection.write, connection, "x"))
        "#,
    );
    assert_eq!(printed, "nil\ttimeout\nabc\ttimeout\nhalf\ttimeout\nwhole\tnil\nnil\ttimeout\nnil\tclosed\nclosed -\n");
}

#[test]
fn one_task_reads_while_another_writes_and_a_second_reader_is_told_at_once() {
    let echo = Echo::start();
    let printed = print(
        echo.address,
        r#"
        local connection = net.connect(`tcp://{address}`)
        local reader = task.spawn(connection.read, connection, 5)
        print(why(connection.read, connection, 1))
        print(why(connection.read_line, connection))
        connection:write("hello")
        print(task.await(reader))
        local socket = net.udp(`udp://{address}`)
        local reader = task.spawn(socket.receive, socket)
        print(why(socket.receive, socket))
        socket:send("datagram")
        print(task.await(reader))
        "#,
    );
    assert_eq!(printed, "busy -\nbusy -\nhello\tnil\nbusy -\ndatagram\n");
}

#[test]
fn a_cancelled_read_leaves_the_connection_sound_and_a_cancelled_write_closes_it() {
    let echo = Echo::start();
    let printed = print(
        echo.address,
        r#"
        local connection = net.connect(`tcp://{address}`)
        local reader = task.spawn(connection.read, connection, 10)
        connection:write("abc")
        task.wait(0.1)
        task.cancel(reader)
        print(connection:read(3))
        "#,
    );
    assert_eq!(printed, "abc\tnil\n");
    // Nobody reads there, so a write comes to a stop when all buffers are full.
    let silent = once(|stream| {
        thread::park();
        drop(stream);
    });
    let printed = print(
        silent,
        r#"
        local function fill(connection, timeout)
            local piece = string.rep("x", 1024 * 1024)
            for _ = 1, 50 do
                connection:write(piece, timeout)
            end
        end
        local connection = net.connect(`tcp://{address}`)
        local writer = task.spawn(fill, connection)
        task.wait(0.3)
        print(why(connection.write, connection, "x"))
        task.cancel(writer)
        print(why(connection.write, connection, "x"))
        print(why(connection.read, connection))
        "#,
    );
    assert_eq!(printed, "busy -\nclosed -\nclosed -\n");
    let silent = once(|stream| {
        thread::park();
        drop(stream);
    });
    let printed = print(
        silent,
        r#"
        local connection = net.connect(`tcp://{address}`)
        local piece = string.rep("x", 1024 * 1024)
        local how
        for _ = 1, 50 do
            how = why(connection.write, connection, piece, 0.2)
            if how ~= "ok" then
                break
            end
        end
        print(how, why(connection.write, connection, "x"))
        "#,
    );
    assert_eq!(printed, "timeout -\tclosed -\n");
}

#[test]
fn closing_ends_what_waits_and_is_final() {
    let echo = Echo::start();
    let printed = print(
        echo.address,
        r#"
        local connection = net.connect(`tcp://{address}`)
        local reader = task.spawn(why, connection.read, connection)
        connection:close()
        connection:close()
        print(task.await(reader), why(connection.read, connection), why(connection.write, connection, "x"))
        local socket = net.udp(`udp://{address}`)
        local reader = task.spawn(why, socket.receive, socket)
        socket:close()
        print(task.await(reader), why(socket.send, socket, "x"))
        print(why(connection.read, socket), why(socket.send, connection, "x"), why(connection.read))
        "#,
    );
    assert_eq!(printed, "closed -\tclosed -\tclosed -\nclosed -\tclosed -\ninvalid -\tinvalid -\tinvalid -\n");
    wait_until("the end of the connection", || echo.open() == 0);
}

#[test]
fn over_the_limit_of_connections_opening_is_refused_at_once() {
    let echo = Echo::start();
    let text = echo.address.to_string();
    let script = r#"
        local open = {}
        for n = 1, 3 do
            local ok, connection = pcall(net.connect, `tcp://{address}`)
            print(ok, if ok then nil else connection.kind, if ok then nil else connection.limit)
            open[n] = connection
        end
        print(why(net.udp, `udp://{address}`))
        open[1]:close()
        print(why(net.connect, `tcp://{address}`))
    "#;
    let lab = Lab::with_script(&format!("{HEAD}{script}"), &grants(echo.address), echo.address);
    let policy = fs::read_to_string(lab.folder.path().join("policy.toml")).unwrap();
    let limited = policy.replace("[tenant.t.limits]\n", "[tenant.t.limits]\nconnections = 2\n");
    assert_ne!(policy, limited);
    fs::write(lab.folder.path().join("policy.toml"), limited).unwrap();
    let expected = "true\tnil\tnil\ntrue\tnil\tnil\nfalse\tlimit\tconnections\nlimit connections\nok\n";
    assert_eq!(lab.print(&[&text]), expected);
}

#[test]
fn a_connection_ends_with_its_request() {
    let echo = Echo::start();
    let script = "local net = require('std:net')\nlocal kept\nreturn function(request)\n\
        \tlocal had = kept\n\tkept = net.connect('tcp://ADDRESS')\n\tkept:write('x')\n\treturn tostring(had) .. kept:read(1)\nend\n";
    let lab =
        Lab::with_script(&script.replace("ADDRESS", &echo.address.to_string()), &grants(echo.address), echo.address);
    let host = Host::start(lab.folder.path());
    for _ in 0..3 {
        // Each request has a VM of its own, so nothing is kept either.
        assert_eq!(host.get("/x").body, "nilx");
    }
    wait_until("the end of all connections", || echo.open() == 0);
    assert_eq!(echo.opened(), 3);
}

#[test]
fn a_socket_hears_its_peer_alone() {
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = peer.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 100];
        let (_, client) = peer.recv_from(&mut buffer).unwrap();
        let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..10 {
            stranger.send_to(b"forged", client).unwrap();
        }
        peer.send_to(b"real", client).unwrap();
        peer.send_to(b"", client).unwrap();
        peer.send_to(&[b'x'; 60_000], client).unwrap();
    });
    let printed = print(
        address,
        r#"
        local socket = net.udp(`udp://{address}`)
        socket:send("hello")
        print(socket, socket:receive())
        print(#socket:receive(), #socket:receive())
        print(socket:receive(0.05))
        print(why(socket.send, socket, string.rep("x", 65508)))
        "#,
    );
    assert_eq!(printed, "socket\treal\n0\t60000\nnil\ttimeout\ninvalid -\n");
}

#[test]
fn arguments_that_make_no_sense_are_refused_by_name() {
    let echo = Echo::start();
    let printed = print(
        echo.address,
        r#"
        local connection = net.connect(`tcp://{address}`)
        for _, call in {
            function() net.connect() end,
            function() net.connect("example.com:80") end,
            function() net.connect("unix:///tmp/socket") end,
            function() net.connect("udp://example.com:80") end,
            function() net.udp("tcp://example.com:80") end,
            function() net.connect(`tcp://{address}`, { tls = true }) end,
            function() connection:read(0) end,
            function() connection:read(1.5) end,
            function() connection:read(2 ^ 30) end,
            function() connection:read("all") end,
            function() connection:read(1, -1) end,
            function() connection:write(5) end,
            function() connection:write(string.rep("x", 1024 * 1024 + 1)) end,
        } do
            local ok, err = pcall(call)
            print(ok, err.kind, err.message)
        end
        "#,
    );
    let lines: Vec<_> = printed.lines().collect();
    assert_eq!(lines.len(), 13);
    assert!(lines.iter().all(|line| line.starts_with("false\tinvalid\t")), "{printed}");
    for text in [
        "net.connect: target must be a string",
        "connection:read: n must be an integer from 1",
        "connection:write: bytes must be",
    ] {
        assert!(printed.contains(text), "{text}: {printed}");
    }
}

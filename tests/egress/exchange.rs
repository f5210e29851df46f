//! What is sent and what is taken: headers, framing, redirects, timeouts, packed bodies, connections that are used
//! again. NET-17, NET-20 to NET-22.

use std::net::TcpListener;

use super::{Lab, redirect};
use crate::support::upstream::Upstream;

/// Runs a script with an upstream that it may reach; gives what it printed. `...` in it is the upstream's address.
fn print(upstream: &Upstream, script: &str) -> String {
    let address = upstream.address.to_string();
    let other = format!("http://localhost:{}", upstream.address.port());
    let grants = format!(
        "[[tenant.t.allow.http]]\nhosts = [\"http://{address}\", \"{other}\"]\naddresses = [\"127.0.0.0/8\"]\n"
    );
    let head = "local hyper = require('vnd:hyper')\nlocal address = ...\n\
        local function why(f, ...)\n\tlocal ok, err = pcall(f, ...)\n\
        \treturn if ok then 'ok' elseif type(err) == 'table' then err.kind .. ' ' .. (err.limit or '-') else tostring(err)\nend\n";
    // No name is looked up.
    Lab::with_script(&format!("{head}{script}"), &grants, upstream.address).print(&[&address])
}

#[test]
fn a_header_that_could_end_early_is_refused_before_a_byte_is_sent() {
    let upstream = Upstream::start();
    let printed = print(
        &upstream,
        r#"
        local url = `http://{address}/`
        for _, value in { "a\r\nX-Evil: 1", "\n", "\r", "a\0b", "a\r\n folded", "\127" } do
            print(why(hyper.get, url, { headers = { ["x-a"] = value } }))
        end
        for _, name in { "a b", "a:b", "a\r\nb", "", "\0", "é", "(a)" } do
            print(why(hyper.get, url, { headers = { [name] = "x" } }))
        end
        -- The letters whose low bytes are CR and LF: sent as UTF-8, they are none.
        local body = hyper.get(url, { headers = { ["x-a"] = "瘍瘊" } }).body
        print(#string.split(body, "\n"))
        "#,
    );
    let mut lines: Vec<_> = printed.lines().collect();
    let plain = print(
        &upstream,
        "print(#string.split(hyper.get(`http://{address}/`, { headers = { ['x-a'] = 'x' } }).body, '\\n'))",
    );
    assert_eq!(lines.pop(), Some(plain.trim()));
    assert_eq!(lines, ["invalid -"; 13]);
    assert_eq!(upstream.requests(), 2);
}

#[test]
fn framing_is_the_hosts_alone() {
    let upstream = Upstream::start();
    let printed = print(
        &upstream,
        r#"
        local url = `http://{address}/`
        for _, name in {
            "Host", "Content-Length", "Transfer-Encoding", "Connection", "Proxy-Authorization", "Proxy-Connection", "TE",
            "Trailer", "Expect", "Upgrade", "Via", "Keep-Alive", "X-Forwarded-For", "x-forwarded-host",
        } do
            print(why(hyper.get, url, { headers = { [name] = "1" } }))
        end
        "#,
    );
    assert_eq!(printed, "denied -\n".repeat(14));
    assert_eq!(upstream.requests(), 0);
    let printed = print(
        &upstream,
        r#"
        for _, method in { "GET", "HEAD", "DELETE", "POST", "PUT" } do
            for _, body in { "", "four" } do
                local request = { url = `http://{address}/`, method = method, body = if body ~= "" then body else nil }
                local head = string.lower(hyper.request(request).body)
                print(method, #body, string.match(head, "content%-length: (%d+)"), string.find(head, "transfer") ~= nil)
            end
        end
        "#,
    );
    // The answer to a HEAD has no body, so what was sent does not show.
    let expected = "GET\t0\tnil\tfalse\nGET\t4\t4\tfalse\nHEAD\t0\tnil\tfalse\nHEAD\t4\tnil\tfalse\n\
        DELETE\t0\tnil\tfalse\nDELETE\t4\t4\tfalse\nPOST\t0\t0\tfalse\nPOST\t4\t4\tfalse\nPUT\t0\t0\tfalse\nPUT\t4\t4\tfalse\n";
    assert_eq!(printed, expected);
}

#[test]
fn credentials_stay_with_their_origin_and_a_loop_ends() {
    let upstream = Upstream::start();
    let here = redirect(upstream.address, &upstream.url("/end"));
    let there = redirect(upstream.address, &format!("http://localhost:{}/end", upstream.address.port()));
    let script = format!(
        r#"
        local headers = {{ authorization = "secret", cookie = "secret", ["x-other"] = "kept" }}
        for _, url in {{ "{here}", "{there}" }} do
            local body = hyper.get(url, {{ headers = headers }}).body
            print(string.find(body, "secret") ~= nil, string.find(body, "kept") ~= nil)
        end
        print(why(hyper.get, `http://{{address}}/loop`))
        "#
    );
    assert_eq!(print(&upstream, &script), "true\ttrue\nfalse\ttrue\nio -\n");
    // Two redirects with their ends, and a loop of six requests.
    assert_eq!(upstream.requests(), 10);
}

#[test]
fn what_a_script_changes_while_a_request_is_under_way_is_not_seen() {
    let upstream = Upstream::start();
    let printed = print(
        &upstream,
        r#"
        local task = require('std:task')
        local request = {
            url = `http://{address}/redirect/307?/before`, method = 'PUT', body = 'before', headers = { ['x-a'] = 'before' },
        }
        local held = task.spawn(hyper.request, request)
        local task_of_many = task.spawn(hyper.get_all, { request })
        request.url, request.method, request.body = `http://{address}/after`, 'POST', 'after'
        request.headers['x-a'], request.headers['x-b'] = 'after', 'after'
        table.clear(request)
        for _, reply in { task.await(held), task.await(task_of_many)[1] } do
            local before = select(2, string.gsub(reply.body, 'before', ''))
            print(string.match(reply.body, '^%u+ %S+'), before, string.find(reply.body, 'after'))
        end
        "#,
    );
    // In the path, the header and the body of the second hop.
    assert_eq!(printed, "PUT /before\t3\tnil\n".repeat(2));
}

#[test]
fn what_an_answer_says_beside_its_location_leads_nowhere() {
    let upstream = Upstream::start();
    let script = r#"
        local reply = hyper.get(`http://{address}/leading`)
        print(reply.status, reply.body)
        print(hyper.get(`http://{address}/page`).status, string.find(hyper.get(`http://{address}/page`).body, "cookie"))
        "#;
    assert_eq!(print(&upstream, script), "200\there\n200\tnil\n");
    assert_eq!(upstream.requests(), 3);
}

#[test]
fn each_timeout_has_its_name() {
    let upstream = Upstream::start();
    // A port that takes connections and never answers: TLS waits for its greeting.
    let script = r#"
        local url = `http://{address}`
        print(why(hyper.get, url .. "/stall", { timeouts = { first_byte = 0.05 } }))
        print(why(hyper.get, url .. "/stall", { timeouts = { total = 0.05 } }))
        print(why(hyper.get, url .. "/stall", { timeout = 0.05 }))
        print(why(hyper.get, url .. "/half", { timeouts = { between_bytes = 0.05 } }))
        print(why(hyper.get, url .. "/half", { timeouts = { between_bytes = 5, total = 0.05 } }))
        print(hyper.get_all({ url .. "/stall" }, { timeouts = { first_byte = 0.05 } })[1].limit)
        "#;
    let printed = print(&upstream, script);
    assert!(["timeout first_byte", "timeout total"].contains(&printed.lines().nth(1).unwrap()), "{printed}");
    let others: Vec<_> =
        printed.lines().enumerate().filter(|(index, _)| *index != 1 && *index != 2).map(|(_, line)| line).collect();
    assert_eq!(others, ["timeout first_byte", "timeout between_bytes", "timeout total", "first_byte"], "{printed}");
}

#[test]
fn a_tls_server_that_never_greets_is_given_up() {
    // A port that nobody accepts from: the connection is there, and no answer comes.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap();
    let address = target.to_string();
    let grants = format!(
        "[[tenant.t.allow.http]]\nhosts = [\"https://{address}\"]\naddresses = [\"127.0.0.0/8\"]\n\
         [[tenant.t.allow.net]]\nhosts = [\"tls://{address}\"]\naddresses = [\"127.0.0.0/8\"]\n"
    );
    let script = r#"
        local hyper, net = require("vnd:hyper"), require("std:net")
        local ok, err = pcall(hyper.get, `https://{...}/`, { timeouts = { connect = 0.1 } })
        print(ok, err.kind, err.limit)
        local ok, err = pcall(net.connect, `tls://{...}`, { timeout = 0.1 })
        print(ok, err.kind)
    "#;
    let printed = Lab::with_script(script, &grants, target).print(&[&address]);
    assert_eq!(printed, "false\ttimeout\tconnect\nfalse\ttimeout\n");
}

#[test]
fn a_body_is_packed_only_where_it_is_asked_for_and_unpacked_under_caps() {
    let upstream = Upstream::start();
    let script = r#"
        local url = `http://{address}`
        local function asked(options)
            return string.match(hyper.get(url .. "/page", options).body, "accept%-encoding: ([^\r\n]*)")
        end
        print(asked(nil), asked({ decompress = true }), asked({ headers = { ["accept-encoding"] = "br" } }))
        local plain = hyper.get(url .. "/gzip")
        print(#plain.body < 1000, plain.headers["content-encoding"])
        local unpacked = hyper.get(url .. "/gzip", { decompress = true })
        print(#unpacked.body, unpacked.headers["content-encoding"], unpacked.headers["content-length"])
        print(hyper.request({ url = url .. "/gzip", method = "HEAD", decompress = true }).status)
        for _, path in { "/bomb", "/gzip-twice", "/cut-gzip" } do
            print(why(hyper.get, url .. path, { decompress = true }))
        end
        "#;
    let expected = "identity\tgzip\tbr\ntrue\tgzip\n20000\tnil\tnil\n200\nlimit response_body\nio -\nio -\n";
    assert_eq!(print(&upstream, script), expected);
}

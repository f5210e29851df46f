//! Upstreams that break the rules of HTTP: HTTP-01 to HTTP-06, HTTP-09.

use super::Lab;
use crate::support::{
    hostile::{Hostile, Request},
    wait_until,
};

/// Tries paths by an entry point, each followed by two requests for `/ok`.
const SCRIPT: &str = r#"
local hyper = require("vnd:hyper")
local json = require("std:json")
local entry, address = ...

local TIMEOUTS = { connect = 3, first_byte = 0.5, between_bytes = 0.5, total = 3 }

local function try(path)
	local url = `http://{address}{path}`
	if entry == "get_all" then
		local reply = hyper.get_all({ url }, { timeouts = TIMEOUTS })[1]
		return reply.status ~= nil, reply
	elseif entry == "post" then
		return pcall(hyper.post, url, "body", { timeouts = TIMEOUTS })
	end
	return pcall(hyper.get, url, { timeouts = TIMEOUTS })
end

for _, path in { select(3, ...) } do
	local ok, reply = try(path)
	local how = if ok then reply.body else reply.kind
	assert(hyper.get(`http://{address}/ok`).body == "ok")
	assert(hyper.get(`http://{address}/ok`).body == "ok")
	print(path, how, if ok then "-" else reply.limit or "-")
end
"#;

/// A path, how the call ends, and the limit that is hit.
const PATHS: &[(&str, &str, &str)] = &[
    ("/endless-headers", "io", "-"),
    ("/slow-headers", "timeout", "first_byte"),
    ("/many-headers", "io", "-"),
    ("/large-header", "io", "-"),
    ("/large-status", "io", "-"),
    ("/endless-body", "limit", "response_body"),
    ("/tiny-chunks", "limit", "response_body"),
    ("/large-extension", "io", "-"),
    ("/huge-chunk", "io", "-"),
    ("/many-trailers", "io", "-"),
    ("/stalls", "timeout", "between_bytes"),
    ("/short", "io", "-"),
    ("/long", "0123456789", "-"),
    ("/half-a-head", "io", "-"),
    ("/reset", "io", "-"),
    ("/split-status", "io", "-"),
    ("/bare-line-feed", "io", "-"),
    ("/zero-byte", "io", "-"),
    ("/two-lengths", "io", "-"),
    ("/length-twice", "io", "-"),
    ("/length-and-chunks", "io", "-"),
    ("/unknown-coding", "io", "-"),
    ("/interim-flood", "io", "-"),
    ("/switch", "io", "-"),
    ("/http-0.9", "io", "-"),
    ("/pipelined", "ok", "-"),
    ("/silent", "timeout", "first_byte"),
];

#[test]
fn a_hostile_answer_is_an_error_in_time_and_its_connection_is_never_used_again() {
    for entry in ["get", "post", "get_all"] {
        let hostile = Hostile::start();
        let address = hostile.address.to_string();
        let grants =
            format!("[[tenant.t.allow.http]]\nhosts = [\"http://{address}\"]\naddresses = [\"127.0.0.1/32\"]\n");
        let lab = Lab::with_script(SCRIPT, &grants, hostile.address);
        // As many at a time as a request may make.
        let printed: String = PATHS
            .chunks(12)
            .map(|paths| {
                let mut arguments = vec![entry, &address];
                arguments.extend(paths.iter().map(|(path, ..)| *path));
                lab.print(&arguments)
            })
            .collect();
        // Which of the two comes first depends on the machine.
        let printed = printed.replace("/tiny-chunks\ttimeout\ttotal", "/tiny-chunks\tlimit\tresponse_body");
        let expected: String = PATHS.iter().map(|(path, how, limit)| format!("{path}\t{how}\t{limit}\n")).collect();
        assert_eq!(printed, expected, "{entry}");

        let requests = hostile.requests();
        for (path, ..) in PATHS {
            let of_path: Vec<_> = requests.iter().filter(|request| request.path == *path).collect();
            // Nothing is sent twice on its own, and nothing follows on the same connection.
            let [Request { connection, .. }] = of_path[..] else { panic!("{entry} {path}: {of_path:?}") };
            let later = requests.iter().skip_while(|request| request.path != *path).skip(1);
            assert!(later.clone().count() >= 2, "{entry} {path}");
            assert!(
                !later.map(|request| request.connection).any(|other| other == *connection),
                "{entry} {path}: {requests:?}"
            );
        }
        // The connection of a good answer is used again: each path's two have one, which ends with the next path.
        let mut good: Vec<_> =
            requests.iter().filter(|request| request.path == "/ok").map(|request| request.connection).collect();
        good.dedup();
        assert_eq!(good.len(), PATHS.len(), "{entry}: {requests:?}");
    }
}

#[test]
fn an_upstream_that_never_answers_loses_its_client() {
    let hostile = Hostile::start();
    let address = hostile.address.to_string();
    let grants = format!("[[tenant.t.allow.http]]\nhosts = [\"http://{address}\"]\naddresses = [\"127.0.0.1/32\"]\n");
    let script = r#"
        local hyper, task = require("vnd:hyper"), require("std:task")
        local url = `http://{...}/silent`
        print(pcall(hyper.get, url, { timeouts = { first_byte = 0.2 } }))
        local waiting = task.spawn(hyper.get, url)
        task.wait(0.1)
        task.cancel(waiting)
        task.wait(0.1)
        print("done")
    "#;
    let printed = Lab::with_script(script, &grants, hostile.address).print(&[&address]);
    assert!(printed.starts_with("false\ttimeout: ") && printed.ends_with("done\n"), "{printed}");
    assert_eq!(hostile.requests().len(), 2);
    wait_until("the end of both connections", || hostile.open() == 0);
}

//! Which calls overlap and which do not. No clock is read: an upstream's gate opens only once
//! enough requests wait at it together, and an upstream counts how many it ever had at once.

use crate::support::{Output, neoc, output, upstream::Upstream};

/// Runs a script that may call the upstream.
fn run(upstream: &Upstream, script: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let policy = format!(
        "[host]\nlisten = \"127.0.0.1:0\"\ndata_dir = \"data\"\n\
         [tenant.a]\nscript = \"script.luau\"\nroutes = [\"/a\"]\n\
         [tenant.a.limits]\nconnections = 32\n\
         [[tenant.a.allow.http]]\nhosts = [\"http://{}\"]\naddresses = [\"127.0.0.0/8\"]\n",
        upstream.address
    );
    std::fs::write(folder.path().join("policy.toml"), policy).unwrap();
    let script = format!("local hyper, task = require('vnd:hyper'), require('std:task')\n{script}");
    std::fs::write(folder.path().join("script.luau"), script.replace("UPSTREAM", &upstream.address.to_string()))
        .unwrap();
    output(neoc().current_dir(folder.path()).args(["run", "script.luau", "--policy", "policy.toml", "--tenant", "a"]))
}

#[test]
fn two_calls_in_two_tasks_overlap() {
    let upstream = Upstream::start();
    let got = run(
        &upstream,
        "local function call() return hyper.get('http://UPSTREAM/gate/2').body end
        local a, b = task.spawn(call), task.spawn(call)
        print(task.await(a), task.await(b))",
    );
    assert_eq!(got.stdout, "together\ttogether\n", "{}", got.stderr);
}

#[test]
fn two_calls_in_sequence_do_not_overlap() {
    let upstream = Upstream::start();
    let got = run(&upstream, "print(hyper.get('http://UPSTREAM/a').status, hyper.get('http://UPSTREAM/b').status)");
    assert_eq!(got.stdout, "200\t200\n", "{}", got.stderr);
    assert_eq!((upstream.requests(), upstream.most_at_once()), (2, 1));
}

#[test]
fn get_all_of_ten_overlaps() {
    let upstream = Upstream::start();
    let got = run(
        &upstream,
        "local urls = table.create(10, 'http://UPSTREAM/gate/10')
        for index, response in hyper.get_all(urls) do print(index, response.body) end",
    );
    let expected: String = (1..=10).map(|index| format!("{index}\ttogether\n")).collect();
    assert_eq!(got.stdout, expected, "{}", got.stderr);
}

#[test]
fn get_all_keeps_the_order_and_puts_an_error_in_a_failed_items_place() {
    let upstream = Upstream::start();
    let got = run(
        &upstream,
        "local results = hyper.get_all({'http://UPSTREAM/1', 'http://UPSTREAM/empty', 'http://nowhere.test/', 'http://UPSTREAM/4'})
        print(#results, string.match(results[1].body, '/%d'), results[2].kind, results[3].kind, string.match(results[4].body, '/%d'))",
    );
    assert_eq!(got.stdout, "4\t/1\tio\tdenied\t/4\n", "{}", got.stderr);
}

#[test]
fn a_wait_lets_other_tasks_run() {
    let upstream = Upstream::start();
    let got = run(
        &upstream,
        "local order = {}
        local slow = task.spawn(function() table.insert(order, 'a') task.wait(0.05) table.insert(order, 'd') end)
        local fast = task.spawn(function() table.insert(order, 'b') task.wait(0) table.insert(order, 'c') end)
        task.await(slow) task.await(fast)
        print(table.concat(order))",
    );
    assert_eq!(got.stdout, "abcd\n", "{}", got.stderr);
}

#[test]
fn a_call_inside_a_users_coroutine_suspends_the_whole_task() {
    let upstream = Upstream::start();
    let got = run(
        &upstream,
        "local statuses = coroutine.wrap(function()
            for i = 1, 3 do coroutine.yield(i, hyper.get('http://UPSTREAM/' .. i).status) end
        end)
        for i, status in statuses do print(i, status) end",
    );
    assert_eq!(got.stdout, "1\t200\n2\t200\n3\t200\n", "{}", got.stderr);
}

#[test]
fn a_redirect_is_followed_and_its_last_answer_given() {
    let upstream = Upstream::start();
    let got = run(
        &upstream,
        "local resp = hyper.post('http://UPSTREAM/redirect/303?/end', 'body')
        print(resp.status, resp.ok, string.match(resp.body, '^[^\\r\\n]+'))",
    );
    assert_eq!(got.stdout, "200\ttrue\tGET /end HTTP/1.1\n", "{}", got.stderr);
}

#[test]
fn a_redirect_to_where_no_rule_leads_is_denied() {
    let (upstream, other) = (Upstream::start(), Upstream::start());
    let got = run(
        &upstream,
        &format!(
            "local ok, err = pcall(hyper.get, 'http://UPSTREAM/redirect/302?{}')
            print(ok, err.kind, err.capability)",
            other.url("/secret")
        ),
    );
    assert_eq!(got.stdout, "false\tdenied\thttp\n", "{}", got.stderr);
    assert_eq!(other.requests(), 0);
}

#[test]
fn a_stalled_upstream_is_a_timeout() {
    let upstream = Upstream::start();
    let got = run(
        &upstream,
        "local ok, err = pcall(hyper.request, {url = 'http://UPSTREAM/stall', timeout = 0.05}) print(ok, err.kind)",
    );
    assert_eq!(got.stdout, "false\ttimeout\n", "{}", got.stderr);
}

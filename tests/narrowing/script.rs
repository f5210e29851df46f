//! A module's table that the script itself narrowed: what it can reach, and that nothing gets round it.

use std::fs;

use serde_json::Value;

use super::Lab;
use crate::support::{host::Host, neoc, output, refusals};

/// Functions for a script: what a call comes to, in a word.
const WORDS: &str = "local function word(call, ...)
        local ok, e = pcall(call, ...)
        return if ok then 'ok' else e.reason or e.kind
    end\n";

/// A lab whose script begins with [`WORDS`].
fn lab(main: &str, others: &[(&str, &str)]) -> Lab {
    let main = format!("{WORDS}{main}");
    let lab = Lab::new(&[&[("main.luau", main.as_str())], others].concat());
    lab.write("");
    lab
}

/// What was recorded of calls that the script took from itself.
fn refused_by_script(lab: &Lab) -> Vec<Value> {
    let audit = fs::read_to_string(lab.folder.path().join("audit.jsonl")).unwrap();
    let records = audit.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    records.filter(|record| record["reason"] == "narrowed_by_script").collect()
}

#[test]
fn each_module_keeps_to_what_it_was_narrowed_to() {
    for (narrowed, call, expected) in [
        ("'vnd:hyper', { hosts = { 'URL' } }", "m.get('URL/other')", "ok"),
        ("'vnd:hyper', { hosts = { 'http://127.0.0.1:1' } }", "m.get('URL/other')", "narrowed_by_script"),
        // The tenant has no such host, and the narrowing gives none.
        ("'vnd:hyper', { hosts = { 'http://127.0.0.1:1' } }", "m.get('http://127.0.0.1:1/')", "host_not_allowed"),
        ("'vnd:hyper', { hosts = { 'URL' }, methods = { 'GET' } }", "m.get('URL/other')", "ok"),
        ("'vnd:hyper', { hosts = { 'URL' }, methods = { 'GET' } }", "m.post('URL/other', '')", "narrowed_by_script"),
        (
            "'vnd:hyper', { hosts = { 'URL' }, methods = { 'GET' } }",
            "m.request({ url = 'URL/other', method = 'put' })",
            "narrowed_by_script",
        ),
        ("'vnd:hyper', { hosts = { 'URL' }, paths = { '/v1/*' } }", "m.get('URL/v1/x')", "ok"),
        ("'vnd:hyper', { hosts = { 'URL' }, paths = { '/v1/*' } }", "m.get('URL/other')", "narrowed_by_script"),
        ("'vnd:hyper', { hosts = { 'URL' }, paths = { '/v1/*' } }", "m.get('URL/v1/../other')", "narrowed_by_script"),
        ("'vnd:hyper', { hosts = { 'URL' } }", "m.get('http://127.1/')", "bad_target"),
        ("'vnd:hyper', { hosts = { 'URL' } }", "m.get('nonsense')", "invalid"),
        ("'std:net', { hosts = { 'ENDPOINT' } }", "m.connect('ENDPOINT'):close()", "ok"),
        ("'std:net', { hosts = { 'tcp://127.0.0.1:1' } }", "m.connect('ENDPOINT'):close()", "narrowed_by_script"),
        ("'std:net', { hosts = { 'ENDPOINT' } }", "m.udp('udp://127.0.0.1:1')", "narrowed_by_script"),
        ("'std:fs', { path = '/data', access = 'read' }", "m.list('/data')", "ok"),
        ("'std:fs', { path = '/data', access = 'read' }", "m.write('/data/x', 'y')", "narrowed_by_script"),
        ("'std:fs', { path = '/data', access = 'read' }", "m.remove('/data/x')", "narrowed_by_script"),
        ("'std:fs', { path = '/data/x', access = 'read-write' }", "m.write('/data/x', 'y')", "ok"),
        ("'std:fs', { path = '/data/x', access = 'read-write' }", "m.write('/data/xy', 'y')", "narrowed_by_script"),
        ("'std:fs', { path = '/data/x', access = 'read-write' }", "m.list('/data')", "narrowed_by_script"),
        ("'std:fs', { path = '/data/x', access = 'read' }", "m.read('/data/../x')", "bad_target"),
        ("'std:fs', { path = '/other', access = 'read' }", "m.read('/other/x')", "path_not_granted"),
        ("'std:kv', { prefix = 'a:' }", "m.set('a:1', 'x')", "ok"),
        ("'std:kv', { prefix = 'a:' }", "m.get('a:\\xff')", "ok"),
        ("'std:kv', { prefix = 'a:' }", "m.get('b:1')", "narrowed_by_script"),
        ("'std:kv', { prefix = 'a:' }", "m.set('b:1', 'x')", "narrowed_by_script"),
        ("'std:kv', { prefix = 'a:' }", "m.delete('a')", "narrowed_by_script"),
    ] {
        let lab = lab(&format!("local m = require({narrowed}) print(word(function() {call} end))"), &[]);
        assert_eq!(lab.run(), format!("{expected}\n"), "{narrowed}: {call}");
        assert_eq!(refused_by_script(&lab).len(), usize::from(expected == "narrowed_by_script"), "{narrowed}: {call}");
    }
}

#[test]
fn no_way_round_a_narrowing_leads_out_of_it() {
    let ways = "local function ways(kv, patterns)
            local found = {}
            local function try(name, f)
                local ok, get = pcall(f)
                table.insert(found, `{name}: {if ok and type(get) == 'function' then word(get, 'b:1') else 'no'}`)
            end
            local other = require('std:kv', { prefix = 'other:' })
            try('itself', function() return kv.get end)
            try('pulled out', function() local get = kv.get return function(key) return get(key) end end)
            try('method of another table', function() return function(key) return other.get(key) end end)
            try('with another self', function() return function(key) return kv.get(key, other, require('std:kv')) end end)
            try('written to', function() kv.get = require('std:kv').get return kv.get end)
            try('written raw', function() rawset(kv, 'get', require('std:kv').get) return kv.get end)
            try('metatable', function() setmetatable(kv, { __index = require('std:kv') }) return kv.get end)
            try('thawed', function() return table.clone(kv).get end)
            try('patterns changed', function() patterns.prefix = 'b:' return kv.get end)
            try('environment', function() return getfenv(kv.get).get end)
            try('environment of the environment', function() return getfenv(kv.get).require('std:kv').get end)
            try('set environment', function()
                setfenv(kv.get, { narrowing = { prefix = 'b:' } })
                return kv.get
            end)
            try('upvalue', function() return debug.getupvalue(kv.get, 1) end)
            try('info', function() return select(2, debug.info(kv.get, 'sf')) end)
            try('coroutine', function() return function(key) return coroutine.wrap(kv.get)(key) end end)
            try('wrapped twice', function()
                return function(key)
                    local outer = coroutine.wrap(function() return coroutine.wrap(kv.get)(key) end)
                    return outer()
                end
            end)
            try('task', function()
                local task = require('std:task')
                return function(key) return task.await(task.spawn(kv.get, key)) end
            end)
            try('sorted', function()
                return function(key) table.sort({ key, key }, function(a) kv.get(a) return false end) end
            end)
            try('replaced', function() return function(key) string.gsub(key, '.+', kv.get) end end)
            try('concatenated', function()
                return function(key) return key .. setmetatable({}, { __concat = function(a) return kv.get(a) end }) end
            end)
            try('protected', function() return function(key) local ok, e = pcall(kv.get, key) if not ok then error(e, 0) end end end)
            return table.concat(found, '\\n')
        end
        local patterns = { prefix = 'a:' }
        print(ways(require('std:kv', patterns), patterns))";
    let lab = lab(ways, &[]);
    let printed = lab.run();
    assert_eq!(printed.lines().count(), 21, "{printed}");
    assert!(!printed.contains(": ok"), "{printed}");
    for name in
        ["itself", "pulled out", "with another self", "thawed", "patterns changed", "coroutine", "task", "sorted"]
    {
        assert!(printed.contains(&format!("{name}: narrowed_by_script")), "{name}: {printed}");
    }
    // The same tries reach it where the narrowing names the key.
    let scripts = lab.folder.path().join("scripts/main.luau");
    let wide = fs::read_to_string(&scripts).unwrap().replace("prefix = 'a:'", "prefix = 'b:'");
    fs::write(scripts, wide).unwrap();
    let printed = lab.run();
    for name in
        ["itself", "pulled out", "with another self", "coroutine", "wrapped twice", "task", "sorted", "replaced"]
    {
        assert!(printed.contains(&format!("{name}: ok")), "{name}: {printed}");
    }
}

#[test]
fn what_is_no_narrowing_is_said_at_the_require_wherever_that_stands() {
    let many = "'https://a.example', ".repeat(17);
    let cases = [
        ("'vnd:hyper', {}", "vnd:hyper: hosts: missing; write for example hosts = { \"https://api.example.com\" }"),
        ("'vnd:hyper', { hosts = {} }", "vnd:hyper: hosts: a rule without hosts allows nothing; write for example"),
        ("'vnd:hyper', { hosts = 'https://a.example' }", "vnd:hyper: hosts = \"https://a.example\": a list of strings"),
        ("'vnd:hyper', { hosts = { 1 } }", "vnd:hyper: hosts: a list of strings"),
        ("'vnd:hyper', { hosts = { 'https://a.example', x = 'y' } }", "vnd:hyper: hosts: a list of strings"),
        ("'vnd:hyper', { hosts = { [2] = 'https://a.example' } }", "vnd:hyper: hosts: a list of strings"),
        ("'vnd:hyper', { hosts = true }", "vnd:hyper: hosts: a list of strings"),
        (
            "'vnd:hyper', { hosts = { 'a.example' } }",
            "vnd:hyper: hosts = \"a.example\": an origin starts with https:// or http://; write for example \"https://a.example\"",
        ),
        ("'vnd:hyper', { host = { 'https://a.example' } }", "vnd:hyper: host: unknown key; did you mean \"hosts\"?"),
        ("'vnd:hyper', { 'https://a.example' }", "vnd:hyper: a key must be a string, got number"),
        ("'vnd:hyper', { hosts = { '\\xff' } }", "vnd:hyper: hosts must be UTF-8"),
        (&format!("'vnd:hyper', {{ hosts = {{ {many} }} }}"), "vnd:hyper: hosts: at most 16 patterns"),
        ("'vnd:hyper', { hosts = table.create(100000, 'x') }", "vnd:hyper: hosts: at most 16 patterns"),
        ("'vnd:hyper', { hosts = { string.rep('x', 1000000) } }", "vnd:hyper: at most 8192 bytes in all"),
        // Nothing of a metatable's is looked at.
        (
            "'vnd:hyper', setmetatable({}, { __index = { hosts = { 'https://a.example' } } })",
            "vnd:hyper: hosts: missing",
        ),
        (
            "'vnd:hyper', setmetatable({}, { __iter = function() return next, { hosts = { 'https://a.example' } } end })",
            "vnd:hyper: hosts: missing",
        ),
        (
            "'vnd:hyper', { hosts = setmetatable({}, { __len = function() return 1 end, __index = { 'https://a.example' } }) }",
            "vnd:hyper: hosts: a rule without hosts",
        ),
        ("'vnd:hyper', 'https://a.example'", "the second argument must be a table, got string"),
        ("'vnd:hyper', false", "the second argument must be a table, got boolean"),
        (
            "'std:net', { hosts = { 'tcp://a.example' } }",
            "std:net: hosts = \"tcp://a.example\": an endpoint has a port",
        ),
        ("'std:fs', { path = '/data' }", "std:fs: access: missing; write for example access = \"read\""),
        ("'std:fs', { path = 'data', access = 'read' }", "std:fs: path = \"data\": a path is absolute"),
        ("'std:kv', { prefix = '' }", "std:kv: prefix = \"\": an empty prefix leaves nothing out"),
        ("'std:json', {}", "std:json takes no second argument"),
        ("'std:task', { hosts = {} }", "std:task takes no second argument"),
        ("'std:workers', {}", "std:workers takes no second argument"),
        ("'./probe', {}", "./probe takes no second argument"),
        ("'std:no', {}", "no module \"std:no\""),
    ];
    for (arguments, expected) in cases {
        let ask = format!(
            "do local ok, e = pcall(require, {arguments})
                assert(not ok and e.kind == 'invalid' and string.find(e.message, [[require: {expected}]], 1, true) == 1, tostring(e))
            end\n"
        );
        let lab = lab(&format!("{ask} print('as said')"), &[]);
        assert_eq!(lab.run(), "as said\n", "{arguments}");
    }
    // At the top level of a handler, where no operation is possible, and in a request.
    let some: String = [&cases[0], &cases[5], &cases[7], &cases[22]]
        .map(|(arguments, expected)| {
            format!("do local ok, e = pcall(require, {arguments}) assert(not ok and string.find(e.message, [[{expected}]], 1, true), tostring(e)) end\n")
        })
        .concat();
    let lab = lab(
        &format!(
            "local function all() {some} end
             all()
             local hyper, plain = require('vnd:hyper', {{ hosts = {{ 'URL' }}, paths = {{ '/v1/*' }} }}), require('vnd:hyper', nil)
             assert(plain == require('vnd:hyper') and hyper ~= plain and table.isfrozen(hyper))
             return function()
                 all()
                 local here = require('vnd:hyper', {{ hosts = {{ 'URL' }}, paths = {{ '/v2/*' }} }})
                 local words = {{}}
                 for _, m in {{ hyper, here, plain }} do
                     table.insert(words, word(m.get, 'URL/v1'))
                     table.insert(words, word(m.get, 'URL/v2'))
                 end
                 return table.concat(words, ' ')
             end"
        ),
        &[],
    );
    let host = Host::start(lab.folder.path());
    for _ in 0..2 {
        assert_eq!(host.get("/").body, "ok narrowed_by_script narrowed_by_script ok ok ok");
    }
}

#[test]
fn each_redirect_each_item_and_each_task_keeps_to_a_narrowing() {
    let lab = lab(
        "local hyper = require('vnd:hyper', { hosts = { 'URL' }, paths = { '/allowed', '/redirect/*' } })
         local task, secret = require('std:task'), require('std:secret')
         local with_key = { headers = { ['x-key'] = secret.get('api_key') } }
         print(word(hyper.get, 'URL/redirect/302?/allowed'), word(hyper.get, 'URL/redirect/302?/other'))
         local list = hyper.get_all({ 'URL/allowed', 'URL/other', { url = 'URL/redirect/302?/other' } })
         print(list[1].status, list[2].reason, list[3].reason)
         print(word(hyper.get, 'URL/allowed', with_key), word(hyper.get, 'URL/other', with_key))
         task.detach(function()
             task.wait(0.01)
             print('detached', word(hyper.get, 'URL/allowed'), word(hyper.get, 'URL/other'))
         end)
         print(task.await_all({ task.spawn(word, hyper.get, 'URL/other'), task.spawn(word, hyper.get, 'URL/allowed') }))",
        &[],
    );
    let printed = lab.run();
    let expected = [
        "ok\tnarrowed_by_script",
        "200\tnarrowed_by_script\tnarrowed_by_script",
        "ok\tnarrowed_by_script",
        "detached\tok\tnarrowed_by_script",
    ];
    assert!(expected.iter().all(|line| printed.lines().any(|printed| printed == *line)), "{printed}");
    let audit = fs::read_to_string(lab.folder.path().join("audit.jsonl")).unwrap();
    assert_eq!(audit.lines().filter(|line| line.contains("\"capability\":\"secret\"")).count(), 1, "{audit}");
    assert_eq!(refused_by_script(&lab).len(), 6, "{audit}");
}

#[test]
fn a_connection_that_a_narrowed_table_opened_is_like_any_other() {
    let lab = lab(
        "local net = require('std:net', { hosts = { 'ENDPOINT' } })
         local connection = net.connect('ENDPOINT')
         connection:write('GET /x HTTP/1.1\\r\\nconnection: close\\r\\n\\r\\n')
         print((string.sub(connection:read_line(), 1, 8)))
         connection:close()",
        &[],
    );
    assert_eq!(lab.run(), "HTTP/1.1\n");
}

#[test]
fn a_module_that_has_less_can_take_from_itself_what_is_left_and_hand_it_on() {
    let lib = "local lib = {}
        local kv = require('std:kv', { prefix = 'lib:' })
        function lib.own(key) return kv.get(key) end
        function lib.wide(key) return require('std:kv').get(key) end
        function lib.list(given) return given.list('/data') end
        function lib.write(given) return given.write('/data/x', '') end
        function lib.narrow(access) return require('std:fs', { path = '/data', access = access }) end
        return lib";
    let main = "local lib = require('./vendor/lib')
        local fs = require('std:fs', { path = '/data', access = 'read' })
        print(word(lib.own, 'lib:1'), word(lib.own, 'x'), word(lib.wide, 'x'))
        print(word(lib.list, fs), word(lib.write, fs))
        print(word(lib.list, lib.narrow('read')), word(lib.write, lib.narrow('read-write')))
        print(word(require('std:kv').get, 'x'))";
    let lab = lab(main, &[("vendor/lib.luau", lib)]);
    for (table, expected) in [
        ("", "ok\tnarrowed_by_script\tok\nok\tnarrowed_by_script\nok\tok\nok\n"),
        (
            "[tenant.a.module.\"vendor/lib\"]\n",
            "not_granted\tnarrowed_by_script\tnot_granted\nok\tnarrowed_by_script\nnot_granted\tnot_granted\nok\n",
        ),
        (
            "[tenant.a.module.\"vendor/lib\".allow.kv]\n[[tenant.a.module.\"vendor/lib\".allow.fs]]\npath = \"/data\"\naccess = \"read\"\n",
            "ok\tnarrowed_by_script\tok\nok\tnarrowed_by_script\nok\tpath_not_writable\nok\n",
        ),
    ] {
        lab.write(table);
        assert_eq!(lab.run(), expected, "{table}");
    }
    // It is the module's doing, and recorded as such.
    let of_lib = refused_by_script(&lab).into_iter().find(|record| record["module"] == "vendor/lib");
    assert_eq!(of_lib.unwrap()["target"], "x");
}

#[test]
fn a_worker_requires_anew_and_has_what_its_tenant_has() {
    let main = "local kv = require('std:kv', { prefix = 'a:' })
        print(word(kv.get, 'x'), require('std:workers').run('./vendor/lib'))";
    let lab = lab(main, &[("vendor/lib.luau", "return function() return (pcall(require('std:kv').get, 'x')) end")]);
    assert_eq!(lab.run(), "narrowed_by_script\ttrue\n");
}

#[test]
fn no_mode_lifts_a_narrowing_and_no_tool_offers_to() {
    let main = "local hyper = require('vnd:hyper', { hosts = { 'URL' }, methods = { 'GET' } })
        local ok, e = pcall(hyper.post, 'URL/x?key=1', '')
        print(e.kind, e.capability, e.target == 'POST URL/x', e.reason, e.rule, e.fix, e.site)
        print(e.message)
        print(word(hyper.get, 'http://127.0.0.1:1/'), word(hyper.get, 'URL/x'))";
    let lab = lab(main, &[]);
    let expected = "denied\thttp\ttrue\tnarrowed_by_script\tno rule\tnil\tmain.luau:6\n\
        the script itself took this away, by \"methods\" in what it gave require\n\
        narrowed_by_script\tok\n";
    assert_eq!(lab.run(), expected);
    let policy = lab.folder.path().join("policy.toml");
    let enforced = fs::read_to_string(&policy).unwrap();
    // Nothing is granted, and all that some rule could allow passes but for the address.
    let reported = "[host]\nlisten = \"127.0.0.1:0\"\naudit = \"audit.jsonl\"\n[tenant.a]\nscript = \"scripts/main.luau\"\nroutes = [\"/*\"]\nmode = \"report\"\n";
    fs::write(&policy, reported).unwrap();
    assert_eq!(lab.run().lines().take(2).collect::<Vec<_>>(), expected.lines().take(2).collect::<Vec<_>>());
    fs::write(lab.folder.path().join("bare.toml"), reported.replace("report\"\n", "enforce\"\n")).unwrap();
    fs::write(lab.folder.path().join("full.toml"), &enforced).unwrap();
    let refused = refused_by_script(&lab);
    assert_eq!(refused.len(), 4, "{refused:?}");
    for record in &refused {
        assert_eq!((record["outcome"].as_str(), record["site"].is_string()), (Some("refuse"), true), "{record}");
        assert!(record["rule"].is_null() && record["fix"].is_null(), "{record}");
    }
    refusals::check_file(&lab.folder.path().join("audit.jsonl"), &neoc::policy::Machine::default());
    let tool = |arguments: &[&str]| output(neoc().current_dir(lab.folder.path()).arg("policy").args(arguments));
    let suggested = tool(&["suggest", "--audit", "audit.jsonl"]).stdout;
    assert!(!suggested.contains("POST") && !suggested.contains(":1\""), "{suggested}");
    let judged = tool(&["diff", "bare.toml", "full.toml", "--audit", "audit.jsonl"]).stdout;
    assert!(
        judged.contains("4 calls were refused by what the script took from itself") && !judged.contains("POST"),
        "{judged}"
    );
}

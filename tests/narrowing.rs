//! Modules that have less than their tenant: what they can reach, and that they cannot get round it.

mod script;

use std::fs;

use crate::support::{host::Host, neoc, output, upstream::Upstream};

/// A tenant with every grant, and a module `vendor/lib` that has what a test gives it.
struct Lab {
    folder: tempfile::TempDir,
    upstream: Upstream,
}

/// Calls with every capability, by the tables that it is given. Gives what was refused, sorted.
const PROBE: &str = "return function(required, url)
        local function denied(call, ...)
            local ok, err = pcall(call, ...)
            return not ok and type(err) == 'table' and err.kind == 'denied'
        end
        local task, secret = required('std:task'), required('std:secret')
        local tries = {
            http = function() required('vnd:hyper').get(url .. '/allowed') end,
            post = function() required('vnd:hyper').post(url .. '/allowed', '') end,
            path = function() required('vnd:hyper').get(url .. '/other') end,
            net = function() required('std:net').connect((string.gsub(url, 'http', 'tcp'))):close() end,
            read = function() required('std:fs').list('/data') end,
            write = function() required('std:fs').write('/data/x', 'y') end,
            kv = function() required('std:kv').get('k') end,
            detach = function() task.detach(function() end) end,
            workers = function() required('std:workers').run('./worker') end,
            secret = function()
                required('vnd:hyper').get(url .. '/allowed', { headers = { ['x-key'] = secret.get('api_key') } })
            end,
        }
        local refused = {}
        for name, call in tries do
            if denied(call) then table.insert(refused, name) end
        end
        table.sort(refused)
        return table.concat(refused, ' ')
    end";

const ALL: &str = "detach http kv net path post read secret workers write";

impl Lab {
    fn new(files: &[(&str, &str)]) -> Self {
        let (folder, upstream) = (tempfile::tempdir().unwrap(), Upstream::start());
        let scripts = folder.path().join("scripts");
        for (path, text) in files.iter().copied().chain([
            ("probe.luau", PROBE),
            ("worker.luau", "return function() end"),
            ("vendor/worker.luau", "return function() end"),
            ("vendor/lib/worker.luau", "return function() end"),
        ]) {
            let path = scripts.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let endpoint = format!("tcp://{}", upstream.address);
            fs::write(path, text.replace("URL", &upstream.url("")).replace("ENDPOINT", &endpoint)).unwrap();
        }
        fs::write(folder.path().join("key"), "value").unwrap();
        Self { folder, upstream }
    }

    fn write(&self, tables: &str) {
        let (origin, endpoint) = (self.upstream.url(""), format!("tcp://{}", self.upstream.address));
        let loopback = "addresses = [\"127.0.0.0/8\"]";
        let policy = format!(
            "[host]\nlisten = \"127.0.0.1:0\"\ndata_dir = \"data\"\naudit = \"audit.jsonl\"\n\
             [tenant.a]\nscript = \"scripts/main.luau\"\nroutes = [\"/*\"]\n\
             [tenant.a.allow]\nkv = {{}}\nworkers = {{}}\ndetach = {{}}\n\
             [[tenant.a.allow.http]]\nhosts = [\"{origin}\"]\n{loopback}\n\
             [[tenant.a.allow.net]]\nhosts = [\"{endpoint}\"]\n{loopback}\n\
             [[tenant.a.allow.fs]]\npath = \"/data\"\ndir = \"a\"\naccess = \"read-write\"\n\
             [tenant.a.secret.api_key]\nfrom = \"file:key\"\norigins = [\"{origin}\"]\n{}",
            tables.replace("ORIGIN", &origin).replace("ENDPOINT", &endpoint)
        );
        fs::write(self.folder.path().join("policy.toml"), policy).unwrap();
    }

    fn run(&self) -> String {
        let mut command = neoc();
        command.current_dir(self.folder.path());
        let got = output(command.args(["run", "scripts/main.luau", "--policy", "policy.toml", "--tenant", "a"]));
        assert_eq!(got.exit, 0, "{}\n{}", got.stdout, got.stderr);
        got.stdout
    }
}

/// A module that gives its own `require` to the probe: what it may is what the probe may by it.
const LIB: &str = "local probe = require('../probe')
    return { probe = function() return probe(require, 'URL') end, require = require }";

const MAIN: &str = "print(require('./probe')(require, 'URL')) print(require('./vendor/lib').probe())";

#[test]
fn a_module_has_what_its_table_names_and_its_tenant_has_the_rest() {
    let lab = Lab::new(&[("main.luau", MAIN), ("vendor/lib.luau", LIB)]);
    lab.write("");
    assert_eq!(lab.run(), "\n\n");
    lab.write("[tenant.a.module.\"vendor/lib\"]\n");
    assert_eq!(lab.run(), format!("\n{ALL}\n"));
    let allow = "[tenant.a.module.\"vendor/lib\".allow";
    for (table, refused) in [
        (format!("[{allow}.http]]\nhosts = [\"ORIGIN\"]\n"), "detach kv net read secret workers write"),
        (
            format!("[{allow}.http]]\nhosts = [\"ORIGIN\"]\nmethods = [\"GET\"]\npaths = [\"/allowed\"]\n"),
            "detach kv net path post read secret workers write",
        ),
        (format!("[{allow}.net]]\nhosts = [\"ENDPOINT\"]\n"), "detach http kv path post read secret workers write"),
        (
            format!("[{allow}.fs]]\npath = \"/data\"\naccess = \"read\"\n"),
            "detach http kv net path post secret workers write",
        ),
        (
            format!("[{allow}.fs]]\npath = \"/\"\naccess = \"read-write\"\n"),
            "detach http kv net path post secret workers",
        ),
        (format!("{allow}.kv]\n"), "detach http net path post read secret workers write"),
        (format!("{allow}.detach]\n"), "http kv net path post read secret workers write"),
        (format!("{allow}.workers]\n"), "detach http kv net path post read secret write"),
        (
            format!("{allow}.secret.api_key]\n[{allow}.http]]\nhosts = [\"ORIGIN\"]\n"),
            "detach kv net read workers write",
        ),
    ] {
        lab.write(&table);
        assert_eq!(lab.run(), format!("\n{refused}\n"), "{table}");
    }
}

#[test]
fn a_table_is_for_all_below_its_path_and_the_longest_path_counts() {
    let lab = Lab::new(&[
        (
            "main.luau",
            "for _, name in { './vendor/lib', './vendor/lib/part', './vendor/lib/free', './vendor/library', './vendor' } do
                print(require(name).probe())
            end",
        ),
        ("vendor/lib/init.luau", LIB),
        ("vendor/lib/part.luau", &LIB.replace("../probe", "../../probe")),
        ("vendor/lib/free/init.luau", &LIB.replace("../probe", "../../probe")),
        ("vendor/library.luau", LIB),
        ("vendor/init.luau", &LIB.replace("../probe", "./probe")),
    ]);
    lab.write("[tenant.a.module.\"vendor/lib\"]\n[tenant.a.module.\"vendor/lib/free\".allow.kv]\n");
    assert_eq!(lab.run(), format!("{ALL}\n{ALL}\n{}\n\n\n", ALL.replace("kv ", "")));
}

#[test]
fn a_module_cannot_get_round_its_table() {
    let lib = "local task = require('std:task')
        local lib = {}
        local function reaches(require)
            local ok, kv = pcall(require, 'std:kv')
            if not ok then return 'no' end
            local ok, err = pcall(kv.get, 'k')
            return if ok then 'REACHED' else err.kind
        end
        function lib.try(callback)
            local found = {}
            local function try(name, f)
                local ok, result = pcall(f)
                table.insert(found, `{name}: {if ok then reaches(result) else 'no'}`)
            end
            try('own', function() return require end)
            try('globals', function() return _G.require end)
            try('globals of globals', function() return _G._G.require end)
            try('raw', function() return rawget(_G, 'require') end)
            try('metatable', function() return getmetatable(_G).__index.require end)
            try('new metatable', function() setmetatable(_G, {}) return _G.require end)
            try('environment', function() return getfenv(2).require end)
            try('function on the stack', function() return debug.info(3, 'f') end)
            try('coroutine', function() return function(name) return coroutine.wrap(require)(name) end end)
            try('task', function() return function(name) return task.await(task.spawn(require, name)) end end)
            try('protected', function() return function(name) local _, m = pcall(require, name) return m end end)
            try('sorted', function()
                return function(name)
                    local kept
                    table.sort({ name, name }, function(a) kept = require(a) return false end)
                    return kept
                end
            end)
            try('replaced', function()
                return function(name) return string.gsub(name, '.+', function(n) lib.kept = require(n) return n end) and lib.kept end
            end)
            try('concatenated', function()
                return function(name)
                    local object = setmetatable({}, { __concat = function(a) return require(a) end })
                    return name .. object
                end
            end)
            try('called back', function() return function(name) return callback(function() return require(name) end) end end)
            require, _G.require = nil, nil
            try('taken away', function() return _G.require end)
            return table.concat(found, '\\n')
        end
        return lib";
    let lab = Lab::new(&[
        ("main.luau", "print(require('./vendor/lib').try(function(f) return f() end)) require('std:kv').get('k')"),
        ("vendor/lib.luau", lib),
    ]);
    lab.write("[tenant.a.module.\"vendor/lib\"]\n");
    let printed = lab.run();
    assert_eq!(printed.lines().count(), 16, "{printed}");
    assert!(!printed.contains("REACHED"), "{printed}");
    for name in ["own", "globals", "coroutine", "task", "sorted", "called back"] {
        assert!(printed.contains(&format!("{name}: denied")), "{name}: {printed}");
    }
    // The same tries reach it where the policy gives the module what its tenant has.
    lab.write("[tenant.a.module.\"vendor/lib\".allow.kv]\n");
    assert!(lab.run().contains("own: REACHED"));
}

#[test]
fn what_a_module_is_given_is_of_who_gave_it() {
    let lab = Lab::new(&[
        (
            "main.luau",
            "local lib = require('./vendor/lib')
            print(pcall(lib.get, require('std:kv')), (pcall(lib.own)))
            local connection = require('std:net').connect((string.gsub('URL', 'http', 'tcp')))
            connection:write('GET /x HTTP/1.1\\r\\n\\r\\n')
            print((pcall(lib.read, connection)), (pcall(lib.forge, connection)))",
        ),
        (
            "vendor/lib.luau",
            "local kv, net = require('std:kv'), require('std:net')
            return {
                get = function(given) return given.get('k') end,
                own = function() return kv.get('k') end,
                read = function(connection) return connection:read_line() end,
                -- Handles are counted from 1: no table of one's own stands for one.
                forge = function(connection)
                    for _, self in { { handle = 1 }, setmetatable({ handle = 1 }, getmetatable(connection)), 1 } do
                        if pcall(connection.read, self) then return end
                    end
                    error('no')
                end,
            }",
        ),
    ]);
    lab.write("[tenant.a.module.\"vendor/lib\"]\n");
    assert_eq!(lab.run(), "true\tfalse\ntrue\tfalse\n");
}

#[test]
fn each_redirect_and_each_item_of_a_list_is_decided_for_the_module() {
    let lab = Lab::new(&[
        ("main.luau", "print(require('./vendor/lib')(require('vnd:hyper')))"),
        (
            "vendor/lib.luau",
            "local hyper = require('vnd:hyper')
            return function(given)
                local function reason(hyper, ...)
                    local ok, err = pcall(hyper.get, ...)
                    return if ok then 'ok' else err.reason
                end
                local list = hyper.get_all({ 'URL/allowed', 'URL/other', 'URL/redirect/302?/other' })
                return reason(hyper, 'URL/redirect/302?/allowed'), reason(hyper, 'URL/redirect/302?/other'),
                    reason(given, 'URL/redirect/302?/other'), list[1].status, list[2].reason, list[3].reason
            end",
        ),
    ]);
    lab.write(
        "[[tenant.a.module.\"vendor/lib\".allow.http]]\nhosts = [\"ORIGIN\"]\npaths = [\"/allowed\", \"/redirect/*\"]\n",
    );
    assert_eq!(lab.run(), "ok\tpath_not_allowed\tok\t200\tpath_not_allowed\tpath_not_allowed\n");
    // Two redirects with their ends, a redirect without, and one that the tenant's own table may follow.
    assert_eq!(lab.upstream.requests(), 7);
}

#[test]
fn a_module_keeps_its_table_in_workers_tasks_and_requests() {
    let lib = "local kv = require('std:kv')
        return function() return (pcall(kv.get, 'k')) end";
    let main = "local task, workers = require('std:task'), require('std:workers')
        local lib = require('./vendor/lib')
        return function()
            local spawned = task.await(task.spawn(lib))
            local lazy = require('./vendor/lazy')
            return `{lib()} {spawned} {workers.run('./vendor/lib')} {lazy()} {(pcall(require('std:kv').get, 'k'))}`
        end";
    let lab = Lab::new(&[("main.luau", main), ("vendor/lib.luau", lib), ("vendor/lazy.luau", lib)]);
    lab.write("[tenant.a.module.\"vendor\"]\n");
    let host = Host::start(lab.folder.path());
    assert_eq!(host.get("/").body, "false false false false true");
    // Another policy, and the same script: the modules are loaded again.
    lab.write("[tenant.a.module.\"vendor/lazy\"]\n");
    host.signal(rustix::process::Signal::HUP);
    crate::support::wait_until("the reload", || host.get("/").body == "true true true false true");
}

#[test]
fn a_refusal_names_the_module_and_its_fix_pasted_allows_that_call() {
    let lab = Lab::new(&[
        ("main.luau", "require('./vendor/lib')()"),
        (
            "vendor/lib.luau",
            "local hyper, kv, fs, secret = require('vnd:hyper'), require('std:kv'), require('std:fs'), require('std:secret')
            local function try(call)
                local ok, err = pcall(call)
                if ok then return end
                assert(err.kind == 'denied' and string.find(err.message, 'for the module vendor/lib', 1, true), tostring(err))
                assert(string.match(err.rule, '^policy%.toml:%d+$'), err.rule)
                print(err.fix)
            end
            return function()
                try(function() hyper.get('URL/x') end)
                try(function() hyper.get('URL/x', { headers = { ['x-key'] = secret.get('api_key') } }) end)
                try(function() kv.get('k') end)
                try(function() fs.list('/data') end)
                try(function() fs.write('/data/x', 'y') end)
            end",
        ),
    ]);
    let mut tables = "[tenant.a.module.\"vendor/lib\"]\n".to_owned();
    let mut n_fixes = 0;
    loop {
        lab.write(&tables);
        let printed = lab.run();
        // The first one: what two calls lack alike is in the file once.
        let Some(fix) = printed.split("\n\n").next().filter(|fix| !fix.is_empty()) else { break };
        tables.push_str(&format!("{fix}\n"));
        n_fixes += 1;
        assert!(n_fixes <= 6, "{tables}\n{printed}");
    }
    assert_eq!(n_fixes, 5, "{tables}");
    let audit = fs::read_to_string(lab.folder.path().join("audit.jsonl")).unwrap();
    assert!(audit.lines().all(|line| line.contains("\"module\":\"vendor/lib\"") || !line.contains("\"refuse\"")));
    // What was recorded under the table alone is suggested, and allows all of it.
    fs::remove_file(lab.folder.path().join("audit.jsonl")).unwrap();
    let bare = "[tenant.a.module.\"vendor/lib\"]\n".to_owned();
    let mut tables = bare.clone();
    for _ in 0..2 {
        lab.write(&tables);
        lab.run();
        lab.write(&bare);
        let suggest = ["policy", "suggest", "--audit", "audit.jsonl", "--policy", "policy.toml"];
        tables = bare.clone() + &output(neoc().current_dir(lab.folder.path()).args(suggest)).stdout;
    }
    lab.write(&tables);
    assert_eq!(lab.run(), "", "{tables}");
    let explain = ["policy", "explain", "--policy", "policy.toml", "--tenant", "a", "--module", "vendor/lib"];
    let ask = |call: &str| output(neoc().current_dir(lab.folder.path()).args(explain).arg(call)).exit;
    assert_eq!((ask("kv get k"), ask("detach")), (0, 1));
}

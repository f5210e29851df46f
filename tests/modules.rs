//! A tenant's own modules: what is read when, and what stays from one request to the next.

use std::{fs, path::Path};

use crate::support::{host::Host, neoc, output};

/// A folder with a policy of one tenant, whose script is `scripts/main.luau`, and these files in `scripts`.
fn folder(files: &[(&str, &str)], toml: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), files);
    let policy = format!(
        "[host]\nlisten = \"127.0.0.1:0\"\ndata_dir = \"scripts/data\"\ninstances = 8\n\
         [tenant.a]\nscript = \"scripts/main.luau\"\nroutes = [\"/a\"]\n{toml}"
    );
    fs::write(folder.path().join("policy.toml"), policy).unwrap();
    folder
}

fn write(folder: &Path, files: &[(&str, &str)]) {
    for (path, content) in files {
        let path = folder.join("scripts").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

#[test]
fn a_running_tenant_never_mixes_two_versions_of_its_modules() {
    let main = "local early = require('./early') return function() return early .. require('./late') .. (pcall(require, './new') and 'n' or '') end";
    let folder = folder(&[("main.luau", main), ("early.luau", "return 1"), ("late.luau", "return 1")], "");
    let host = Host::start(folder.path());
    assert_eq!(host.get("/a").body, "11");
    write(folder.path(), &[("early.luau", "return 2"), ("late.luau", "return 2"), ("late/init.luau", "return 3")]);
    assert_eq!(host.get("/a").body, "11");
    fs::remove_file(folder.path().join("scripts/late.luau")).unwrap();
    assert_eq!(host.get("/a").body, "11");
    // What was not there before was never read; it may come.
    write(folder.path(), &[("new.luau", "return 1")]);
    assert_eq!(host.get("/a").body, "11n");
    host.stop();
    assert_eq!(Host::start(folder.path()).get("/a").body, "23n");
}

#[test]
fn a_module_that_fails_while_the_script_loads_keeps_the_host_from_starting() {
    for (module, expected) in [
        ("return require('std:kv').get('x')", "lib/m.luau:1: invalid: kv.get: top-level code may not do I/O"),
        ("\n\nreturn = 1", "main.luau:1: invalid: require: lib/m.luau:3: "),
        ("return", "main.luau:1: invalid: require: lib/m.luau must return exactly one value"),
        ("while true do end", "killed: the script used up its CPU budget"),
        ("return require('./m')", "a cycle: main.luau -> lib/m.luau -> lib/m.luau"),
        ("return require('../../m')", "leads out of the script's folder"),
        ("coroutine.yield()", "may wait for what it calls, but not yield"),
    ] {
        let folder = folder(&[("main.luau", "return require('./lib/m')"), ("lib/m.luau", module)], "");
        let got = output(neoc().current_dir(folder.path()).args(["host", "--policy", "policy.toml"]));
        assert_eq!(got.exit, 1, "{module}");
        assert!(got.stderr.contains(expected), "{module}: {}", got.stderr);
        assert!(!got.stderr.contains(&*folder.path().to_string_lossy()), "{module}: {}", got.stderr);
    }
}

#[test]
fn a_look_up_counts_as_an_operation_and_is_recorded() {
    let main = "return function()
        local found, over = 0, 0
        for i = 1, 10 do
            local ok, e = pcall(require, './m' .. i)
            found += ok and 1 or 0
            over += not ok and e.kind == 'limit' and 1 or 0
        end
        return `{found} {over}`
    end";
    let modules: Vec<_> = (1..=10).map(|n| format!("m{n}.luau")).collect();
    let files: Vec<_> = modules.iter().map(|path| (path.as_str(), "return 1")).chain([("main.luau", main)]).collect();
    let folder = folder(&files, "[tenant.a.limits]\noperations = \"4/h\"\n");
    let host = Host::start(folder.path());
    assert_eq!(host.get("/a").body, "4 6");
    let log = host.stop();
    assert!(log.contains("\"capability\":\"module\"") && log.contains("\"operation_target\":\"m1.luau\""), "{log}");
}

#[test]
fn what_a_tenant_has_written_is_no_module_of_anyone() {
    let main = "local fs = require('std:fs')
        return function()
            fs.write('/mine/x.luau', 'return 1')
            return tostring(select(2, pcall(require, './data/a-mine/x')))
        end";
    let toml = "[[tenant.a.allow.fs]]\npath = \"/mine\"\ndir = \"a-mine\"\naccess = \"read-write\"\n";
    let folder = folder(&[("main.luau", main)], toml);
    let host = Host::start(folder.path());
    let expected = "invalid: require: data/a-mine/x.luau: lies in the data folder, where no module is";
    assert_eq!(host.get("/a").body, expected);
    assert!(folder.path().join("scripts/data/a-mine/x.luau").exists());
}

#[test]
fn a_module_for_which_there_is_no_memory_is_an_error_that_can_be_caught() {
    let main = "local kept, wrong = {}, nil
        pcall(function() for i = 1, 1e6 do kept[i] = string.rep(tostring(i), 1000) end end)
        for i = 1, 3 do
            local ok, e = pcall(require, './big')
            -- Or Luau's own words, when there is not even the memory to ask.
            if ok or not (e == 'not enough memory' or e.limit == 'memory') then wrong = e end
        end
        kept = nil
        -- The collector comes at the next loops and calls.
        for _ = 1, 100 do
            if pcall(require, './small') then break end
        end
        print(wrong, require('./small'))";
    let big = format!("return {{ {} }}", "x={1},".repeat(80_000));
    let folder = folder(&[("main.luau", main), ("big.luau", &big), ("small.luau", "return 'small'")], "");
    let got = output(neoc().current_dir(folder.path()).args(["run", "scripts/main.luau"]));
    assert_eq!(got.stdout, "nil\tsmall\n", "{}", got.stderr);
}

#[test]
fn a_long_chain_of_modules_fits_on_the_stack() {
    let chain: Vec<_> =
        (0..62).map(|n| (format!("m{n}.luau"), format!("local m = require('./m{}') return m", n + 1))).collect();
    let mut files: Vec<_> = chain.iter().map(|(path, source)| (path.as_str(), source.as_str())).collect();
    let last = "local function f(n) return if n == 0 then 0 else 1 + f(n - 1) end
        return `{f(15000)} {string.gsub('x', 'x', function() return pcall(coroutine.wrap(function() error() end)) and 'y' or 'z' end)}`";
    let main = "local function nest(n) if n == 0 then return require('./m0') end return coroutine.wrap(nest)(n - 1) end
        print(nest(100))";
    files.extend([("m62.luau", last), ("main.luau", main)]);
    let folder = folder(&files, "");
    let got = output(neoc().current_dir(folder.path()).args(["run", "scripts/main.luau"]));
    assert_eq!(got.stdout, "15000 z\n", "{}", got.stderr);
}

#[test]
fn run_takes_modules_from_the_scripts_folder_wherever_it_is_started() {
    let folder =
        folder(&[("main.luau", "print(require('./lib/m'), pcall(require, '../x'))"), ("lib/m.luau", "return 'm'")], "");
    fs::write(folder.path().join("x.luau"), "return 'outside'").unwrap();
    let expected = "m\tfalse\tinvalid: require: \"../x\" leads out of the script's folder\n";
    for (from, script) in [("", "scripts/main.luau"), ("scripts", "main.luau"), ("scripts/lib", "../main.luau")] {
        let got = output(neoc().current_dir(folder.path().join(from)).args(["run", script]));
        assert_eq!((got.exit, got.stdout.as_str()), (0, expected), "{script}: {}", got.stderr);
    }
    let got = output(neoc().current_dir("/").arg("run").arg(folder.path().join("scripts/main.luau")));
    assert_eq!((got.exit, got.stdout.as_str()), (0, expected), "{}", got.stderr);
}

/// MEM-04 of the attacks, for loads.
#[test]
fn memory_that_runs_out_at_any_moment_leaves_no_load_half_done() {
    // The heap is filled, a little more of it given back each time, and a module required by two tasks.
    let main = "local task = require('std:task')
        local failed = 0
        for n = 0, 149 do
            local name = './m' .. n
            local kept, i = {}, 0
            -- Made first: with the heap full, there may be no room for a function.
            local function fill() while true do i += 1 kept[i] = string.rep(tostring(i), 1000) end end
            local function fill_up() while true do i += 1 kept[i] = tostring(i) .. 'small' end end
            local function load()
                local one, two = task.spawn(pcall, require, name), task.spawn(pcall, require, name)
                return task.await(one) and task.await(two)
            end
            pcall(fill)
            pcall(fill_up)
            for j = #kept, #kept - 4 * n, -1 do kept[j] = nil end
            local tried, ok = pcall(load)
            if not (tried and ok) then failed += 1 end
            kept = nil
            -- The collector comes at the next loops and calls.
            local value
            for _ = 1, 100 do
                tried, value = pcall(require, name)
                if tried then break end
            end
            assert(tried and value[2] == n, tostring(value))
            -- Until there is room again for what this script itself needs.
            for _ = 1, 1000 do
                if pcall(table.create, 10000) then break end
            end
        end
        print(failed > 0 and failed < 150 or failed)";
    let modules: Vec<_> =
        (0..150).map(|n| (format!("m{n}.luau"), format!("return {{ require('./part'), {n} }}"))).collect();
    let mut files: Vec<_> = modules.iter().map(|(path, source)| (path.as_str(), source.as_str())).collect();
    files.extend([("part.luau", "return 'part'"), ("main.luau", main)]);
    let limits = "[tenant.a.limits]\nmemory = \"8 MiB\"\ncpu = \"60 s\"\nwall = \"60 s\"\n";
    let folder = folder(&files, limits);
    let policy = ["--policy", "policy.toml", "--tenant", "a"];
    let got = output(neoc().current_dir(folder.path()).args(["run", "scripts/main.luau"]).args(policy));
    assert_eq!((got.exit, got.stdout.as_str()), (0, "true\n"), "{}", got.stderr);
}

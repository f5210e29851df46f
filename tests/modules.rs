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

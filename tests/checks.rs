//! What `neoc check` says of scripts: each folder of `tests/checks` holds a policy, its scripts, and what is printed
//! of them. `NEOC_UPDATE=1` writes that again.

use std::{fs, path::Path};

use crate::support::{Output, neoc, output, repository, upstream::Upstream};

fn check(folder: &Path, more: &[&str]) -> Output {
    output(neoc().current_dir(folder).args(["check", "--policy", "policy.toml"]).args(more))
}

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

const HEAD: &str = "[host]\nlisten = \"127.0.0.1:0\"\ndata_dir = \"data\"\n[tenant.a]\nscript = \"main.luau\"\n";

#[test]
fn each_folder_of_scripts_is_judged_as_expected() {
    let mut folders: Vec<_> =
        fs::read_dir(repository().join("tests/checks")).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    assert!(folders.len() >= 6, "only {} folders found", folders.len());
    for folder in folders {
        let Output { exit, stdout, stderr } = check(&folder, &[]);
        let got = format!("{stderr}{stdout}exit {exit}\n");
        let expected = folder.join("expected.txt");
        if std::env::var_os("NEOC_UPDATE").is_some() {
            fs::write(&expected, &got).unwrap();
        }
        assert_eq!(got, fs::read_to_string(&expected).unwrap(), "{}", folder.display());
    }
}

#[test]
fn warnings_fail_a_check_only_where_they_are_denied() {
    for (name, plain, denied) in [("urls", 0, 1), ("modules", 1, 1), ("clean", 0, 0), ("links", 0, 0)] {
        let folder = repository().join("tests/checks").join(name);
        assert_eq!(check(&folder, &[]).exit, plain, "{name}");
        let got = check(&folder, &["--deny-warnings"]);
        assert_eq!(got.exit, denied, "{name}: {}", got.stderr);
        assert_eq!(got.stdout.is_empty(), denied == 1, "{name}: {}", got.stdout);
    }
}

/// Line by line: what is refused in a run is warned of, and nothing else. In report mode the warning says of what
/// passes that it does.
#[test]
fn a_check_warns_of_what_a_run_refuses_and_of_nothing_else() {
    let upstream = Upstream::start();
    let (enforced, n_calls) = agree(&upstream, "enforce");
    assert!(enforced >= 25 && enforced <= n_calls - 10, "{enforced} of {n_calls}");
    let (reported, _) = agree(&upstream, "report");
    assert!(reported >= 10 && reported < enforced, "{reported} of {enforced}");
}

/// Gives how many calls are refused, and of how many.
fn agree(upstream: &Upstream, mode: &str) -> (usize, usize) {
    let (origin, address) = (upstream.url(""), upstream.address);
    let policy = format!(
        "{HEAD}mode = \"{mode}\"\n[[tenant.a.allow.http]]\nhosts = [\"{origin}\"]\naddresses = [\"127.0.0.0/8\"]\n\
         methods = [\"GET\", \"PUT\"]\npaths = [\"/v1/*\", \"/exact\"]\n\
         [[tenant.a.allow.http]]\nhosts = [\"http://localhost:1\"]\n\
         [[tenant.a.deny.http]]\nhosts = [\"{origin}\"]\npaths = [\"/v1/no/*\"]\n\
         [[tenant.a.allow.net]]\nhosts = [\"tcp://{address}\"]\naddresses = [\"127.0.0.0/8\"]\n\
         [[tenant.a.allow.fs]]\npath = \"/data\"\ndir = \"files\"\naccess = \"read\"\n"
    );
    let calls = [
        "hyper.get('ORIGIN/v1/x')",
        "hyper.get('ORIGIN/v1')",
        "hyper.get('ORIGIN/exact?q=1#x')",
        "hyper.get('ORIGIN/exactly')",
        "hyper.get('ORIGIN')",
        "hyper.get('ORIGIN/v1/no/x')",
        "hyper.get('ORIGIN/v1//no/x')",
        "hyper.get('ORIGIN/v1/%6eo/x')",
        "hyper.get('ORIGIN/v1/../exact')",
        "hyper.get('\\x68\\116\\u{74}\\z\n p' .. ':' .. '//' .. HOST .. '/v1')",
        "hyper.get(`http://{HOST}/v1/{HOST}`)",
        "hyper.get(`http://{HOST}/v2/{HOST}`)",
        "hyper.get [[ORIGIN/v1/x]]",
        "hyper.get [[ORIGIN/v2/x]]",
        "hyper.post('ORIGIN/v1/x', 'body')",
        "hyper.request({ url = 'ORIGIN/v1/x', method = 'PUT', body = 'method = \"POST\"' })",
        "hyper.request({ method = 'POST', url = 'ORIGIN/v1/x' })",
        "hyper.request({ method = 'put', url = 'ORIGIN/v1/x' })",
        "hyper.request({ method = 'post', url = 'ORIGIN/v1/x' })",
        "hyper.request({ method = 'P-T', url = 'ORIGIN/v1/x' })",
        "hyper.request({ method = '', url = 'ORIGIN/v1/x' })",
        "hyper.request({ method = 'TRACE', url = 'ORIGIN/v1/x' })",
        "get('ORIGIN/v1/x')",
        "get('ORIGIN/v2/x')",
        "hyper.get('http://localhost:1/')",
        "hyper.get('https://127.0.0.3:1/')",
        "hyper.get('http://127.1/')",
        "hyper.get('http://169.254.169.254/')",
        "hyper.get('http://user@HOST/v1')",
        "hyper.get('ORIGIN/v1/ x')",
        "hyper.get('/v1')",
        "hyper.get('ftp://HOST/v1')",
        "hyper.get('')",
        "net.connect('tcp://HOST')",
        "net.connect('tls://HOST')",
        "net.connect('tcp://127.0.0.1:1')",
        "net.udp('udp://HOST')",
        "net.connect('nonsense')",
        "fs.list('/data')",
        "fs.read('/data/../x')",
        "fs.write('/data/x', '')",
        "fs.read('/etc/passwd')",
        "require('vnd:hyper', { hosts = { 'ORIGIN' }, methods = { 'GET' } }).get('ORIGIN/v1/x')",
        "require('vnd:hyper', { hosts = { 'ORIGIN' }, methods = { 'GET' } }).get('ORIGIN/v2/x')",
        "narrowed.get('ORIGIN/v1/x')",
        "narrowed.get('ORIGIN/v2/x')",
        "require('std:kv').get('k')",
        "require('std:workers').run('./worker')",
        "require('std:task').detach(function() end)",
    ];
    let mut script = format!(
        "local hyper, net, fs = require('vnd:hyper'), require('std:net'), require('std:fs')
         local narrowed = require('vnd:hyper', {{ hosts = {{ '{origin}' }}, methods = {{ 'GET' }} }})
         local HOST, get = '{address}', hyper.get
         local function try(call)
             local ok, e = pcall(call)
             if not ok and (e.kind == 'denied' or e.kind == 'invalid') then print(debug.info(call, 'l')) end
         end\n"
    );
    let expand = |call: &str| call.replace("ORIGIN", &origin).replace("//HOST", &format!("//{address}"));
    for call in calls {
        // On one line of its own, whatever is in it.
        let call = expand(call).replace("@HOST", &format!("@{address}")).replace("\\z\n ", "\\z ");
        script.push_str(&format!("try(function() return {call} end)\n"));
    }
    let folder = folder(&[("policy.toml", &policy), ("main.luau", &script), ("worker.luau", "return function() end")]);
    fs::create_dir_all(folder.path().join("data/files")).unwrap();
    let run = ["run", "main.luau", "--policy", "policy.toml", "--tenant", "a"];
    let run = output(neoc().current_dir(folder.path()).args(run));
    assert_eq!(run.exit, 0, "{}", run.stderr);
    let refused: Vec<&str> = run.stdout.lines().collect();
    let checked = check(folder.path(), &[]);
    assert_eq!(checked.exit, 0, "{}", checked.stderr);
    let mut warned = Vec::new();
    let passes = "the tenant is in report mode, so a run lets it pass";
    let warnings = checked.stderr.split("\n\n").filter(|drawn| drawn.starts_with("warning: "));
    for warning in warnings.filter(|drawn| !drawn.contains(passes)) {
        let place = warning.lines().find_map(|line| line.trim_start().strip_prefix("--> main.luau:")).unwrap();
        warned.push(place.split(':').next().unwrap());
    }
    let line = |number: &str| script.lines().nth(number.parse::<usize>().unwrap() - 1).unwrap().to_owned();
    let shown = |lines: &[&str]| lines.iter().map(|number| format!("{number}: {}", line(number))).collect::<Vec<_>>();
    assert_eq!(shown(&warned), shown(&refused));
    (refused.len(), calls.len())
}

#[test]
fn a_narrowing_that_makes_no_sense_is_an_error_in_the_words_of_the_require() {
    for (arguments, expected) in [
        ("'std:kv', { prefix = 'a:' }", None),
        ("'vnd:hyper', { hosts = { 'https://a.example' }, paths = { BASE .. '/*' } }", None),
        ("'vnd:hyper', { hosts = SOME }", None),
        ("'vnd:hyper', {}", Some("require: vnd:hyper: hosts: missing")),
        (
            "'vnd:hyper', { hosts = { 'a.example' } }",
            Some("require: vnd:hyper: hosts = \"a.example\": an origin starts"),
        ),
        (
            "'std:fs', { path = '/data', access = 'write' }",
            Some("require: std:fs: access = \"write\": read or read-write"),
        ),
        ("'std:json', {}", Some("require: std:json takes no second argument")),
    ] {
        let policy = format!(
            "{HEAD}[[tenant.a.allow.http]]\nhosts = [\"https://a.example\"]\n[[tenant.a.allow.fs]]\npath = \"/data\"\n\
             dir = \"d\"\naccess = \"read\"\n[tenant.a.allow.kv]\n"
        );
        let script = format!(
            "local BASE, SOME = '/v1', {{ 'https://a.example' }}\nlocal m = require({arguments})\nreturn print"
        );
        let folder = folder(&[("policy.toml", &policy), ("main.luau", &script)]);
        let got = check(folder.path(), &[]);
        assert_eq!(got.exit, i32::from(expected.is_some()), "{arguments}: {}", got.stderr);
        let Some(expected) = expected else { continue };
        assert!(got.stderr.starts_with(&format!("error: {expected}")), "{arguments}: {}", got.stderr);
        assert!(got.stderr.contains(" --> main.luau:2:19\n"), "{arguments}: {}", got.stderr);
        // A run says the same.
        let run = output(neoc().current_dir(folder.path()).args([
            "run",
            "main.luau",
            "--policy",
            "policy.toml",
            "--tenant",
            "a",
        ]));
        assert!(run.stderr.contains(expected), "{arguments}: {}", run.stderr);
    }
}

#[test]
fn a_module_that_nobody_has_is_an_error() {
    let script = "local json = require('std:jsn')\nreturn function() return json.encode(1) end";
    let got = check(folder(&[("policy.toml", HEAD), ("main.luau", script)]).path(), &[]);
    assert_eq!((got.exit, got.stdout.as_str()), (1, ""));
    assert!(got.stderr.starts_with("error: require: no module \"std:jsn\"; there are std:fs, "), "{}", got.stderr);
    assert!(got.stderr.contains(" --> main.luau:1:22\n"), "{}", got.stderr);
}

#[test]
fn a_script_with_many_faults_has_the_first_hundred_drawn() {
    let calls = "hyper.get('https://other.example/')\n".repeat(150);
    let absent: String = (0..120).map(|n| format!("require('./absent{n}')\n")).collect();
    let script = format!("local hyper = require('vnd:hyper')\n{calls}{absent}");
    let got = check(folder(&[("policy.toml", HEAD), ("main.luau", &script)]).path(), &[]);
    assert_eq!(got.exit, 1);
    let count = |what| got.stderr.lines().filter(|line| line.starts_with(what)).count();
    assert_eq!((count("warning: "), count("error: ")), (100, 100));
    assert!(got.stderr.contains("tenant.a: and 20 errors, 50 warnings more\n"), "{}", got.stderr);
    assert!(got.stderr.ends_with("policy.toml: 1 tenant, 1 script, 120 errors, 150 warnings\n"), "{}", got.stderr);
}

#[test]
fn a_hostile_script_can_neither_draw_on_a_terminal_nor_hold_up_a_check() {
    let lines = [
        "local hyper = require('vnd:hyper')",
        "hyper.get('https://\u{1b}[2J.example/') hyper.get('https://x.example/\u{9b}31m')",
        "hyper.get('https://x.example/\\27[2J\\n\\0') hyper.get(\"https://\u{202e}.example\")",
        "pcall(function() require('./\\27[2J') require('\\27]0;x\\7') require('@\\27') require('./a\\nb') end)",
        "fs = require('std:fs') fs.read('/\\27[2J') require('std:net').connect('tcp://\\27[2J:1')",
        "hyper.request({ url = 'https://x.example/', method = '\\27[2J' })",
    ];
    let hostile = format!("{}\nreturn '\u{9b}' -- {}", lines.join("\n"), "x".repeat(10_000));
    let deep = format!("local hyper = require('vnd:hyper')\nreturn {}", "hyper.request{".repeat(35_000));
    let open = format!("require('./deep') {}", "{".repeat(100));
    let files = [("policy.toml", HEAD), ("main.luau", &hostile), ("deep.luau", &deep), ("open.luau", &open)];
    let folder = folder(&files);
    let got = check(folder.path(), &[]);
    assert_eq!(got.exit, 1);
    let is_hostile = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
    assert!(!got.stderr.contains(is_hostile), "{:?}", got.stderr);
    fs::write(folder.path().join("main.luau"), "require('./deep') require('./open')").unwrap();
    let got = check(folder.path(), &[]);
    assert_eq!(got.exit, 1);
    assert_eq!(got.stderr.matches("error: require: ").count(), 2, "{}", got.stderr);
}

#[test]
fn sources_over_the_limit_are_refused_as_in_a_run() {
    let large = format!("return 1 --{}", "x".repeat(512 * 1024));
    let files = [("policy.toml", HEAD), ("main.luau", "require('./large')"), ("large.luau", large.as_str())];
    let folder = folder(&files);
    let got = check(folder.path(), &[]);
    assert_eq!(got.exit, 1);
    assert!(got.stderr.starts_with("error: require: large.luau: longer than 524288 bytes\n"), "{}", got.stderr);
    fs::write(folder.path().join("main.luau"), &large).unwrap();
    let got = check(folder.path(), &[]);
    assert!(got.stderr.contains("tenant.a.script: main.luau: the source has 524299 bytes"), "{}", got.stderr);
}

//! Secrets: they reach the origins that they are bound to, and nobody else ever sees them.

use std::fs;

use rustix::process::Signal;

use crate::support::{host::Host, neoc, output, upstream::Upstream, wait_until};

/// The value. No script below has it in one piece, so that wherever it is found it has leaked.
const VALUE: &str = "open-sesame-4711";

const HEAD: &str = "local hyper, json, kv, secret, task, workers = require('vnd:hyper'), require('std:json'),
        require('std:kv'), require('std:secret'), require('std:task'), require('std:workers')
    local key = secret.get('api_key')
    -- Whether an upstream that echoes was sent the value.
    local function has(response)
        return string.find(response.body, 'open-sesame' .. '-4711', 1, true) ~= nil
    end
";

/// A folder with a script, a policy that lets it reach the upstream by two names, and the secret for one of them.
struct Lab {
    folder: tempfile::TempDir,
    upstream: Upstream,
}

impl Lab {
    fn new(script: &str) -> Self {
        let (folder, upstream) = (tempfile::tempdir().unwrap(), Upstream::start());
        let other = format!("http://localhost:{}", upstream.address.port());
        let script = format!("local bound, other = 'http://{}', '{other}'\n{HEAD}{script}", upstream.address);
        fs::write(folder.path().join("main.luau"), script).unwrap();
        fs::write(folder.path().join("worker.luau"), "return function(value) return type(value) end").unwrap();
        fs::write(folder.path().join("api_key"), format!("{VALUE}\n")).unwrap();
        let lab = Self { folder, upstream };
        lab.write(&lab.secret());
        lab
    }

    /// The secret's table, bound to the upstream by its address.
    fn secret(&self) -> String {
        let origin = self.upstream.url("");
        format!("[tenant.a.secret.api_key]\nfrom = \"file:api_key\"\norigins = [\"{origin}\"]\n")
    }

    /// Writes the policy: the grants, and these tables.
    fn write(&self, tables: &str) {
        let (bound, port) = (self.upstream.url(""), self.upstream.address.port());
        let policy = format!(
            "[host]\nlisten = \"127.0.0.1:0\"\ndata_dir = \"data\"\naudit = \"audit.jsonl\"\n\
             [tenant.a]\nscript = \"main.luau\"\nroutes = [\"/*\"]\n\
             [tenant.a.allow]\nkv = {{}}\nworkers = {{}}\n\
             [[tenant.a.allow.http]]\nhosts = [\"{bound}\", \"http://localhost:{port}\"]\naddresses = [\"127.0.0.0/8\"]\n\
             {tables}"
        );
        fs::write(self.folder.path().join("policy.toml"), policy).unwrap();
    }

    /// Runs the script; gives what it printed. Nothing that came out has the value.
    fn run(&self) -> String {
        let mut command = neoc();
        command.current_dir(self.folder.path()).env("NEOC_LOG", "trace").env("OTHER_KEY", VALUE);
        let got = output(command.args(["run", "main.luau", "--policy", "policy.toml", "--tenant", "a"]));
        assert_eq!(got.exit, 0, "{}\n{}", got.stdout, got.stderr);
        assert!(!got.stdout.contains(VALUE) && !got.stderr.contains(VALUE), "{}\n{}", got.stdout, got.stderr);
        got.stdout
    }

    /// All that lies in the data directory and the audit file, as one text.
    fn kept(&self) -> String {
        let mut text = fs::read(self.folder.path().join("audit.jsonl")).unwrap();
        for entry in fs::read_dir(self.folder.path().join("data")).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_file() {
                text.extend(fs::read(entry.path()).unwrap());
            }
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

#[test]
fn a_secret_goes_out_in_a_header_by_every_call() {
    let lab = Lab::new(
        "local function by(value) return { headers = { ['x-key'] = value } } end
        local text = secret.format('Bearer %s', key)
        print(has(hyper.get(bound, by(key))), has(hyper.post(bound, 'body', by(text))))
        print(has(hyper.request({ url = bound, method = 'PUT', headers = { authorization = text } })))
        for _, response in hyper.get_all({ bound .. '/a', { url = bound, headers = { ['x-key'] = key } } }, by(text)) do
            print(has(response))
        end
        local twice = hyper.get(bound, by(secret.format('%s:%%:%s', key, key))).body
        print((string.gsub(string.match(twice, 'x%-key: ([^\\r\\n]*)'), 'open.sesame.4711', 'K')))
        -- The value's base64, in two pieces.
        local basic = hyper.get(bound, by(secret.basic('ada', key))).body
        print(string.find(basic, 'Basic YWRhOm9wZW4tc2Vz' .. 'YW1lLTQ3MTE=', 1, true) ~= nil)",
    );
    assert_eq!(lab.run(), "true\ttrue\ntrue\ntrue\ntrue\nK:%:K\ntrue\n");
}

#[test]
fn a_script_cannot_read_a_secret() {
    let lab = Lab::new(
        "print(tostring(key), type(key), typeof(key), getmetatable(key))
        print(tostring(secret.format('Bearer %s', key)), string.format('%s', tostring(key)))
        local function refused(name, call, ...)
            local ok, err = pcall(call, ...)
            print(name, ok, err)
        end
        refused('index', function() return key.value end)
        refused('set', function() key.value = 1 end)
        refused('call', function() return key() end)
        refused('length', function() return #key end)
        refused('concat', function() return 'x' .. key end)
        refused('compare', function() return key < key end)
        refused('iterate', function() for _ in key do end end)
        refused('rawget', rawget, key, 1)
        refused('metatable', setmetatable, key, {})
        refused('json', json.encode, { key })
        refused('kv', kv.set, 'k', key)
        refused('url', hyper.get, key)
        refused('body', hyper.post, bound, key)
        refused('list', hyper.get, bound, { headers = { x = { key } } })
        refused('worker', workers.run, './worker', key)
        refused('basic', secret.basic, 'ada', secret.format('x%s', key))
        print('forged', has(hyper.get(bound, { headers = { x = setmetatable({ 'api_key' }, { __type = 'secret' }) } })))
        print(key == secret.get('api_key'), key == key)",
    );
    let printed = lab.run();
    let lines: Vec<_> = printed.lines().collect();
    assert_eq!(lines[0], "secret api_key\tuserdata\tsecret\tfalse");
    assert_eq!(lines[1], "secret api_key\tsecret api_key");
    assert_eq!(lines.len(), 20, "{printed}");
    for line in &lines[2..19] {
        assert_eq!(line.split('\t').nth(1), Some("false"), "{line}");
    }
    assert_eq!(lab.upstream.requests(), 1);
    assert!(!lab.kept().contains(VALUE));
}

#[test]
fn a_redirect_takes_a_secret_along_within_its_origin_and_no_further() {
    let lab = Lab::new(
        "local headers = { authorization = secret.format('Bearer %s', key), ['x-key'] = key, ['x-other'] = 'kept' }
        for _, target in { bound, other } do
            local response = hyper.get(`{bound}/redirect/302?{target}/end`, { headers = headers })
            print(has(response), string.find(response.body, 'kept') ~= nil)
        end
        -- And from elsewhere back to where it may go.
        local away = hyper.get(`{other}/redirect/302?{bound}/end`, { headers = { ['x-other'] = 'kept' } })
        print(has(away))",
    );
    assert_eq!(lab.run(), "true\ttrue\nfalse\ttrue\nfalse\n");
}

#[test]
fn another_origin_is_refused_and_the_fix_binds_the_secret_to_that_one() {
    let script = "local ok, err = pcall(hyper.get, other .. '/x', { headers = { ['x-key'] = key } })
        if ok then print(has(err)) return end
        assert(err.kind == 'denied' and err.capability == 'secret', tostring(err))
        assert(string.match(err.site, '^main%.luau:%d+$') and string.find(tostring(err), 'api_key'), err.site)
        print(err.reason, err.rule) print(err.fix)";
    for mode in ["", "[tenant.a]\nmode = \"report\"\n"] {
        let lab = Lab::new(script);
        let tables = lab.secret();
        let with_mode = |tables: &str| {
            lab.write(tables);
            let path = lab.folder.path().join("policy.toml");
            let policy = fs::read_to_string(&path).unwrap();
            let head = mode.strip_prefix("[tenant.a]\n").unwrap_or_default();
            fs::write(path, policy.replace("[tenant.a]\n", &format!("[tenant.a]\n{head}"))).unwrap();
        };
        with_mode(&tables);
        let printed = lab.run();
        let (reason, fix) = printed.split_once('\n').unwrap();
        let (label, rule) = reason.split_once('\t').unwrap();
        assert!(label == "secret_not_bound" && rule.starts_with("policy.toml:"), "{printed}");
        assert_eq!(lab.upstream.requests(), 0, "{mode}");
        with_mode(&format!("{tables}{fix}"));
        assert_eq!(lab.run(), "true\n", "{fix}");
        let kept = lab.kept();
        let of_secret: Vec<_> = kept.lines().filter(|line| line.contains("\"capability\":\"secret\"")).collect();
        let [refused, used] = of_secret[..] else { panic!("{kept}") };
        for words in ["\"operation\":\"api_key\"", "\"target\":\"http://localhost:", "\"refuse\"", "secret_not_bound"] {
            assert!(refused.contains(words), "{words}: {refused}");
        }
        assert!(used.contains("\"allow\"") && used.contains("policy.toml:") && !kept.contains(VALUE), "{used}");
        lab.write(&tables);
        let audit = ["policy", "suggest", "--audit", "audit.jsonl", "--policy", "policy.toml"];
        let suggested = output(neoc().current_dir(lab.folder.path()).args(audit)).stdout;
        assert_eq!(suggested.replace(" # 1 calls", ""), fix.replace("\n\n", "\n"), "{suggested}");
    }
}

#[test]
fn a_secret_that_the_policy_does_not_have_is_refused_with_a_fix() {
    let lab = Lab::new(
        "local ok, err = pcall(hyper.get, bound, { headers = { ['x-key'] = secret.get('other_key') } })
        if ok then print(has(err)) else print(err.reason, err.rule) print(err.fix) end",
    );
    let printed = lab.run();
    let fix = printed.strip_prefix("not_granted\tno rule\n").unwrap();
    lab.write(&format!("{}{fix}", lab.secret()));
    assert_eq!(lab.run(), "true\n", "{fix}");
}

#[test]
fn what_the_header_of_a_secret_may_be_is_judged_as_of_any_other() {
    let lab = Lab::new(
        "local function why(name, value)
            local ok, err = pcall(hyper.get, bound, { headers = { [name] = value } })
            print(if ok then 'ok' else err.kind)
        end
        why('Host', key) why('content-length', key) why('X-Forwarded-For', key) why('a b', key)
        why('x-a', secret.format('a\\r\\nX-Evil: %s', key)) why('x-a', secret.format('\\0%s', key))
        print(pcall(secret.basic, 'a:b', key)) print(pcall(secret.get, 'A B')) print(pcall(secret.format, '%d', key))
        print(pcall(secret.format, '%s', 'text')) print(pcall(secret.format, '%s %s', key)) print(pcall(secret.format, 'x', key))
        local headers = {}
        for index = 1, 64 do headers[`x-{index}`] = if index % 2 == 0 then key else 'x' end
        print(has(hyper.get(bound, { headers = headers })))
        headers['x-65'] = key
        print(pcall(hyper.get, bound, { headers = headers }))
        local many = key
        for _ = 1, 4 do many = secret.format('%s%s', many, many) end
        print(has(hyper.get(bound, { headers = { x = many } })), pcall(secret.format, '%s%s', many, key))",
    );
    let printed = lab.run();
    let expected = "denied\ndenied\ndenied\ninvalid\ninvalid\ninvalid\n\
        false\tinvalid: secret.basic: a user has no colon and no control character\n\
        false\tinvalid: secret.get: a secret's name is 1 to 63 of a-z, 0-9, _ and -, got A B\n\
        false\tinvalid: secret.format: a pattern has %s for a secret and %% for a percent sign\n\
        false\tinvalid: secret.format: secret must be a secret from secret.get, got string\n\
        false\tinvalid: secret.format: there are more %s than secrets\n\
        false\tinvalid: secret.format: there are more secrets than %s\n\
        true\nfalse\tinvalid: hyper: at most 64 headers, got 65\n\
        true\tfalse\tinvalid: secret.format: a text has at most 16 pieces\n";
    assert_eq!(printed, expected);
    assert_eq!(lab.upstream.requests(), 2);
}

#[test]
fn a_client_is_sent_no_secret() {
    let lab = Lab::new(
        "return function(request)
            if request.path == '/header' then return { headers = { ['x-key'] = key } } end
            if request.path == '/body' then return { body = key } end
            if request.path == '/bare' then return key end
            if request.path == '/error' then error(key) end
            print(key, { key = key })
            return tostring(has(hyper.get(bound, { headers = { ['x-key'] = key } })))
        end",
    );
    let host = Host::start(lab.folder.path());
    assert_eq!(host.get("/").body, "true");
    for path in ["/header", "/body", "/bare", "/error"] {
        let answer = host.get(path);
        assert!(answer.status == 500 && !format!("{answer:?}").contains(VALUE), "{path}: {answer:?}");
    }
    let log = host.stop();
    assert!(log.contains("secret api_key") && !log.contains(VALUE), "{log}");
    assert!(!lab.kept().contains(VALUE));
}

#[test]
fn a_reload_reads_the_secret_again_and_one_that_is_gone_keeps_the_policy() {
    let script = "return function()
            local body = hyper.get(bound, { headers = { ['x-key'] = key } }).body
            return string.match(body, 'x%-key: ([^\\r\\n]*)')
        end";
    let lab = Lab::new(script);
    let host = Host::start(lab.folder.path());
    assert_eq!(host.get("/").body, VALUE);
    let reloads = |host: &Host| host.count("neoc::reload");
    let file = lab.folder.path().join("api_key");
    fs::write(&file, "another-value").unwrap();
    host.signal(Signal::HUP);
    wait_until("the new value", || host.get("/").body == "another-value");
    for content in [None, Some(""), Some("two\nlines")] {
        match content {
            None => fs::remove_file(&file).unwrap(),
            Some(content) => fs::write(&file, content).unwrap(),
        }
        let before = reloads(&host);
        host.signal(Signal::HUP);
        wait_until("the reload", || reloads(&host) > before);
        assert_eq!(host.get("/").body, "another-value", "{content:?}");
    }
    let log = host.stop();
    for words in ["cannot read", "the secret is empty", "the secret has a line break"] {
        let line = log.lines().find(|line| line.contains(words)).unwrap_or_else(|| panic!("{words}: {log}"));
        assert!(line.contains("stays in force") && line.contains("tenant.a.secret.api_key.from"), "{line}");
    }
    assert!(!log.contains("two\\nlines") && !log.contains("another-value"), "{log}");
}

#[test]
fn a_host_whose_secrets_cannot_be_read_says_so_of_all_of_them_and_does_not_start() {
    let lab = Lab::new("return function() end");
    let origin = lab.upstream.url("");
    let table =
        |name: &str, from: &str| format!("[tenant.a.secret.{name}]\nfrom = \"{from}\"\norigins = [\"{origin}\"]\n");
    fs::write(lab.folder.path().join("long"), VALUE.repeat(1000)).unwrap();
    lab.write(&(table("first", "file:none") + &table("second", "env:NEOC_NOT_THERE") + &table("third", "file:long")));
    let got = output(neoc().arg("host").arg("--policy").arg(lab.folder.path().join("policy.toml")));
    assert_eq!(got.exit, 1, "{}", got.stderr);
    for words in [
        "policy.toml:14: tenant.a.secret.first.from: cannot read",
        "policy.toml:17: tenant.a.secret.second.from: the environment has no variable NEOC_NOT_THERE",
        "policy.toml:20: tenant.a.secret.third.from: the secret is longer than 4 KiB",
    ] {
        assert!(got.stderr.contains(words), "{words}\n{}", got.stderr);
    }
    assert!(!got.stderr.contains(VALUE), "{}", got.stderr);
}

//! Texts, and what is found in them.

use std::path::{Path, PathBuf};

use neoc_abi::narrowing::Given;

use super::lexer::{self, Kind};
use super::reader::{self, Found, What};

fn tokens(source: &str) -> Vec<(Kind, &str)> {
    lexer::tokens(source.as_bytes()).into_iter().map(|token| (token.kind, &source[token.start..token.end])).collect()
}

#[test]
fn a_text_is_cut_as_luau_cuts_it() {
    use Kind::{Begin, End, Middle, Name, Number, Sign, Text};
    let cases: &[(&str, &[(Kind, &str)])] = &[
        ("", &[]),
        ("a_1 = b", &[(Name, "a_1"), (Sign, "="), (Name, "b")]),
        (
            "a..b...c ..= 1",
            &[(Name, "a"), (Sign, ".."), (Name, "b"), (Sign, "..."), (Name, "c"), (Sign, "..="), (Number, "1")],
        ),
        (
            "1e-5-0x1F .5 1_000 3.e+2",
            &[(Number, "1e-5"), (Sign, "-"), (Number, "0x1F"), (Number, ".5"), (Number, "1_000"), (Number, "3.e+2")],
        ),
        ("a -- 'b'\nc", &[(Name, "a"), (Name, "c")]),
        ("a --[[ 'b'\n ]] c", &[(Name, "a"), (Name, "c")]),
        ("--[==[ ]] ]=] ]==]a", &[(Name, "a")]),
        ("--[==[ no end", &[]),
        ("--[=a\nb", &[(Name, "b")]),
        ("--", &[]),
        ("[[a]b]]c", &[(Text, "[[a]b]]"), (Name, "c")]),
        ("[=[a]]]=]", &[(Text, "[=[a]]]=]")]),
        ("[=[]=]=]", &[(Text, "[=[]=]"), (Sign, "="), (Sign, "]")]),
        ("a[b]", &[(Name, "a"), (Sign, "["), (Name, "b"), (Sign, "]")]),
        ("'a\\'b'c", &[(Text, "'a\\'b'"), (Name, "c")]),
        ("'a\\\\'b", &[(Text, "'a\\\\'"), (Name, "b")]),
        ("\"'\" '\"'", &[(Text, "\"'\""), (Text, "'\"'")]),
        ("'a\\\nb'", &[(Text, "'a\\\nb'")]),
        ("'a\\z \n  b'", &[(Text, "'a\\z \n  b'")]),
        ("'open\nb", &[(Text, "'open"), (Name, "b")]),
        ("'--' b", &[(Text, "'--'"), (Name, "b")]),
        ("`a`", &[(Text, "`a`")]),
        ("`a\\`\\{b`", &[(Text, "`a\\`\\{b`")]),
        ("`\\u{41}`c", &[(Text, "`\\u{41}`"), (Name, "c")]),
        ("`a{b}c{d}`e", &[(Begin, "`a{"), (Name, "b"), (Middle, "}c{"), (Name, "d"), (End, "}`"), (Name, "e")]),
        (
            "`{ {`{x}`} }`",
            &[(Begin, "`{"), (Sign, "{"), (Begin, "`{"), (Name, "x"), (End, "}`"), (Sign, "}"), (End, "}`")],
        ),
        ("{a}", &[(Sign, "{"), (Name, "a"), (Sign, "}")]),
        ("}`", &[(Sign, "}"), (Text, "`")]),
    ];
    for (source, expected) in cases {
        assert_eq!(tokens(source), *expected, "{source:?}");
    }
}

/// Texts below a folder.
fn texts(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            texts(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "luau") {
            found.push(path);
        }
    }
}

/// A text without its comments, and with one space where there was any blank. Lines stay lines.
fn without_blanks(source: &[u8]) -> Vec<u8> {
    let (mut bare, mut end) = (Vec::new(), 0);
    let tokens = lexer::tokens(source).into_iter().map(|token| (token.start, token.end));
    for (start, next_end) in tokens.chain([(source.len(), source.len())]) {
        let blank = &source[end..start];
        bare.extend(blank.first().map(|_| b' '));
        bare.extend(blank.iter().filter(|byte| **byte == b'\n'));
        bare.extend_from_slice(&source[start..next_end]);
        end = next_end;
    }
    bare
}

/// Luau makes the same code of the tokens alone, to the line: comments are none, and a string ends where it does.
#[test]
fn the_tokens_of_every_script_here_are_the_whole_script() {
    let compiler = mlua::chunk::Compiler::new().set_optimization_level(0).set_debug_level(1);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (mut files, mut n_compiled) = (Vec::new(), 0);
    for folder in ["examples", "tests", "guest/src", "guest/types", "bench"] {
        texts(&root.join(folder), &mut files);
    }
    for file in files {
        let source = std::fs::read(&file).expect("readable");
        let bare = without_blanks(&source);
        let compile = |source: &[u8]| compiler.compile(source).map_err(drop);
        assert_eq!(compile(&source), compile(&bare), "{}", file.display());
        n_compiled += usize::from(compile(&source).is_ok());
    }
    assert!(n_compiled > 100, "only {n_compiled} compile");
}

#[test]
fn a_string_stands_for_what_it_does_in_luau() {
    let lua = mlua::Lua::new();
    for written in [
        "''",
        "'a'",
        "\"a\"",
        "`a`",
        "'\\a\\b\\f\\n\\r\\t\\v\\\\\\\"\\''",
        "'\\65\\066\\0677'",
        "'\\x41\\x7a'",
        "'\\u{48}\\u{20AC}\\u{1F600}'",
        "'a\\z  \n\t b'",
        "'a\\\nb'",
        "'a\\\r\nb'",
        "'\\q\\/'",
        "'https:\\x2f\\x2fa.example\\47x'",
        "[[a]]",
        "[[\na\n]]",
        "[[\r\na\r\nb]]",
        "[==[a]]b]=]]==]",
        "[[\\n]]",
        "`\\{a\\}\\``",
        "`\\u{7b}x`",
    ] {
        let expected: String = lua.load(format!("return {written}")).eval().expect(written);
        let token = lexer::tokens(written.as_bytes())[0];
        assert_eq!((token.kind, token.end), (Kind::Text, written.len()), "{written:?}");
        assert_eq!(lexer::value(written.as_bytes(), token), Some(expected), "{written:?}");
    }
    // No text, or none that Luau would take.
    for written in ["'\\xff'", "'\\255'", "'\\300'", "'\\u{110000}'", "'\\x4", "'\\xg1'", "'\\u{+1}'", "'\\"] {
        assert_eq!(lexer::value(written.as_bytes(), lexer::tokens(written.as_bytes())[0]), None, "{written:?}");
    }
    let long = format!("'{}'", "a".repeat(9_000));
    assert_eq!(lexer::value(long.as_bytes(), lexer::tokens(long.as_bytes())[0]), None);
}

/// What is found, one line each: the piece of the text, and what it is.
fn found(source: &str) -> Vec<String> {
    let show = |Found { span, what }| {
        let piece = source[span].replace('\n', " ");
        let target = |target: neoc_abi::survey::Target| target.text + if target.is_whole { "" } else { "…" };
        match what {
            What::Require { name, narrowing, is_caught } => {
                let fields = narrowing.map(|narrowing| {
                    narrowing.fields.into_iter().map(|(key, given)| match given {
                        Given::Text(text) => format!(" {key}={text}"),
                        Given::Texts(texts) => format!(" {key}={texts:?}"),
                        Given::Other => format!(" {key}"),
                    })
                });
                let fields: String = fields.into_iter().flatten().collect();
                format!("require {name}{fields}{}", if is_caught { " caught" } else { "" })
            }
            What::Call { module, function, target: of, method } => {
                let of = of.map_or_else(|| "?".to_owned(), target);
                format!("{piece}: {module} {function} {} {of}", method.unwrap_or_else(|| "-".to_owned()))
            }
            What::Url(of) => format!("url {}", target(of)),
        }
    };
    reader::read(source.as_bytes()).0.into_iter().map(show).filter(|found| found != "require vnd:hyper").collect()
}

const HYPER: &str = "local hyper = require('vnd:hyper')\n";

#[test]
fn what_is_required_is_found() {
    for (source, expected) in [
        ("require('./a') require \"./b\" require[[std:kv]]", &["require ./a", "require ./b", "require std:kv"][..]),
        ("require(`./a`) require('./' .. 'a')", &["require ./a", "require ./a"]),
        ("local dir = './lib' require(dir .. '/a')", &["require ./lib/a"]),
        ("require(name) require('./' .. name) require(`./{name}`) require('./a' or b)", &[]),
        ("-- require('./a')\n--[[ require('./b') ]] local s = \"require('./c')\"", &[]),
        ("x.require('./a') x:require('./b')", &[]),
        ("pcall(require, './a')", &["require ./a caught"]),
        ("f(require, './a')", &[]),
        ("local load = require local a = load('./a')", &["require ./a"]),
        ("local function require(x) end require('./a')", &[]),
        // What a module is narrowed to, where all of it is spelled out.
        (
            "local A = 'https://a.example' require('vnd:hyper', { paths = { '/a'; '/b', }, hosts = { A .. ':1' } })
             require('std:fs', { path = '/data', access = 'read', }) require('std:kv', {}) require('std:kv', { prefix = p })
             require('std:kv', { prefix = 'a' }, 1) require('std:kv', { prefix = 'a', prefix = 'b' })
             require('std:kv', { prefix = 'a' .. b }) require('std:kv', { ['prefix'] = 'a' }) require('std:kv', t)",
            &[
                "require vnd:hyper hosts=[\"https://a.example:1\"] paths=[\"/a\", \"/b\"]",
                "require std:fs access=read path=/data",
                "require std:kv",
                "require std:kv",
                "require std:kv",
                "require std:kv",
                "require std:kv",
                "require std:kv",
                "require std:kv",
            ],
        ),
        // Its patterns are no calls.
        (
            "local hosts = { 'https://b.example/' } local kv = require('std:kv', { prefix = f(')') }) kv.get('x')
             local ok, hyper = pcall(require, 'vnd:hyper', { hosts = { 'https://a.example' }, paths = { '/a' } })
             require('./a', { hosts = hosts }) require('./b', { 'https://c.example/' }",
            &[
                "url https://b.example/",
                "require std:kv",
                "'x': std:kv get - x",
                "require vnd:hyper caught",
                "require ./a",
                "url https://c.example/",
            ],
        ),
        ("return { a = require('./a'), b = require('./b').x }", &["require ./a", "require ./b"]),
        (
            "local workers = require('std:workers') workers.run('./w', 1)",
            &["require std:workers", "require ./w", "'./w': std:workers run - ./w"],
        ),
    ] {
        assert_eq!(found(source), expected, "{source}");
    }
}

#[test]
fn a_call_is_found_by_the_names_that_lead_to_it() {
    for (source, expected) in [
        ("hyper.get('https://a.example/x')", &["'https://a.example/x': vnd:hyper get GET https://a.example/x"][..]),
        ("hyper.post(\"https://a.example\", body)", &["\"https://a.example\": vnd:hyper post POST https://a.example"]),
        (
            "hyper.get 'x' hyper.get [[y]] hyper.get `z`",
            &["'x': vnd:hyper get GET x", "[[y]]: vnd:hyper get GET y", "`z`: vnd:hyper get GET z"],
        ),
        ("local get = hyper.get get('x')", &["'x': vnd:hyper get GET x"]),
        ("local get = require('vnd:hyper').get get('x')", &["'x': vnd:hyper get GET x"]),
        ("local get: any = require('vnd:hyper').get :: any get('x')", &["'x': vnd:hyper get GET x"]),
        ("local a, b = 1, hyper.get b('x')", &[]),
        ("local a, b = 'x', hyper.get b(a)", &["a: vnd:hyper get GET x"]),
        ("require('vnd:hyper').get('x')", &["'x': vnd:hyper get GET x"]),
        (
            "local h = require('vnd:hyper', { hosts = { 'https://a.example/' } }) h.get('x') require('vnd:hyper', n).post('y')",
            &[
                "require vnd:hyper hosts=[\"https://a.example/\"]",
                "'x': vnd:hyper get GET x",
                "'y': vnd:hyper post POST y",
            ],
        ),
        (
            "pcall(hyper.get, 'x') task.spawn(hyper.post, 'y', 'b')",
            &["'x': vnd:hyper get GET x", "'y': vnd:hyper post POST y"],
        ),
        ("hyper.get(url) hyper.get(f('x')) hyper.get({'x'}) hyper.get() x.hyper.get('y')", &[]),
        ("-- hyper.get('x')\nlocal s = \"hyper.get('x')\" hyper:get('x') hyper.get", &[]),
        ("retry(hyper.get, 'x') f(hyper.get, 'x')", &[]),
        ("local get = hyper.get function get<T>(x) end get('x')", &[]),
        ("hyper.get('https://a.example' or b)", &["url https://a.example"]),
        ("hyper.get(('https://a.example/%s'):format(b))", &["url https://a.example/%s"]),
    ] {
        assert_eq!(found(&format!("{HYPER}{source}")), expected, "{source}");
    }
}

#[test]
fn a_url_is_followed_through_names_and_pieces() {
    for (source, expected) in [
        (
            "local base = 'https://a.example' hyper.get(base .. '/x')",
            &["base .. '/x': vnd:hyper get GET https://a.example/x"][..],
        ),
        (
            "local base = 'https://a.example' hyper.get(base .. '/x/' .. id)",
            &["base .. '/x/': vnd:hyper get GET https://a.example/x/…"],
        ),
        (
            "local base = 'https://a.example' hyper.get(`{base}/x/{id}?q`)",
            &["`{base}/x/{: vnd:hyper get GET https://a.example/x/…"],
        ),
        (
            "local a, b = 'https://', 'a.example' hyper.get(`{a}{b}/{a}`)",
            &["`{a}{b}/{a}`: vnd:hyper get GET https://a.example/https://"],
        ),
        ("hyper.get(`https://a.example/{id}`)", &["`https://a.example/{: vnd:hyper get GET https://a.example/…"]),
        ("base = 'https://a.example' hyper.get(base)", &["base: vnd:hyper get GET https://a.example"]),
        ("local base = 'https://a.example' base = f() hyper.get(base)", &["url https://a.example"]),
        ("local base = 'https://a.example' base ..= '/x' hyper.get(base)", &["url https://a.example"]),
        ("local base = 'https://a.example' local base hyper.get(base)", &["url https://a.example"]),
        (
            "local base = 'https://a.example' local function f(base: string) hyper.get(base) end",
            &["url https://a.example"],
        ),
        ("local base = 'https://a.example' f(function(a, base) hyper.get(base) end)", &["url https://a.example"]),
        ("local base = 'https://a.example' for _, base in all do hyper.get(base) end", &["url https://a.example"]),
        (
            "local base = 'https://a.example' hyper.get(base:upper()) hyper.get(base.x) hyper.get(base[1])",
            &["url https://a.example"],
        ),
        ("local base = os.x or 'https://a.example' hyper.get(base)", &["url https://a.example"]),
        ("local t = { base = 'https://a.example' } hyper.get(t.base)", &["url https://a.example"]),
        ("local s = 'see https://a.example', 'https://', 'https://%s/', 'ftp://a.example', 'https:///x'", &[]),
        ("local x = `https://a.example/{id}`", &["url https://a.example/…"]),
    ] {
        assert_eq!(found(&format!("{HYPER}{source}")), expected, "{source}");
    }
}

#[test]
fn a_name_that_may_mean_two_things_means_nothing() {
    for (source, expected) in [
        ("local a if x then a = 'https://a.example' else a = 'https://b.example' end", &[][..]),
        ("local a = 'https://a.example' if x then a = 'https://b.example' end", &[]),
        ("local a = 'https://a.example' if x then a = nil end", &[]),
        ("local a, b = 'https://a.example' b, a = 1, 2", &[]),
        ("local a = 'https://a.example' a, b = 1, 2", &[]),
        ("local a a = 'https://a.example'", &["a: vnd:hyper get GET https://a.example"]),
        ("local a = 'x' local a = 'https://a.example'", &["a: vnd:hyper get GET https://a.example"]),
        (
            "local a = 'https://a.example' f(a, b) t = { a, b = 1 } return a, b",
            &["a: vnd:hyper get GET https://a.example"],
        ),
        ("hyper = mock a = 'https://a.example'", &[]),
    ] {
        let all = found(&format!("{HYPER}{source} hyper.get(a)"));
        let calls: Vec<_> = all.into_iter().filter(|found| !found.starts_with("url ")).collect();
        assert_eq!(calls, expected, "{source}");
    }
}

#[test]
fn a_request_as_a_table_has_a_url_and_a_method() {
    for (source, expected) in [
        ("hyper.request({ url = 'x' })", &["'x': vnd:hyper request GET x"][..]),
        ("hyper.request { method = 'put', url = 'x' }", &["'x': vnd:hyper request PUT x"]),
        ("hyper.request({ headers = { url = 'no' }; url = 'x', method = m })", &["'x': vnd:hyper request - x"]),
        ("hyper.request({ url = 'x', method = 'M-SEARCH' })", &["'x': vnd:hyper request \"M-SEARCH\" x"]),
        ("hyper.request({ url = url, method = 'PUT' }) hyper.request(r)", &[]),
        ("pcall(hyper.request, { url = 'x', body = f({ method = 'PUT' }) })", &["'x': vnd:hyper request GET x"]),
        (
            "hyper.get_all({ 'x', { url = 'y', method = 'PUT' }, url, 'z' .. id })",
            &["'x': vnd:hyper get_all GET x", "'y': vnd:hyper get_all PUT y", "'z': vnd:hyper get_all GET z…"],
        ),
        ("hyper.get_all(list) hyper.get_all({ f('x', 'y'), 'z' })", &[]),
    ] {
        assert_eq!(found(&format!("{HYPER}{source}")), expected, "{source}");
    }
}

#[test]
fn what_a_policy_says_nothing_of_is_no_finding() {
    let source = "local json, task, kv = require('std:json'), require('std:task'), require('std:kv')
        json.encode({}) task.wait(1) task.detach(f) task.spawn(f)";
    assert_eq!(
        found(source),
        ["require std:json", "require std:task", "require std:kv", "task.detach: std:task detach - ?"]
    );
}

#[test]
fn any_bytes_are_gone_through_to_their_end() {
    let pieces: [&[u8]; 40] = [
        b"require",
        b"(",
        b")",
        b"'",
        b"\"",
        b"`",
        b"[[",
        b"]]",
        b"--",
        b"[=[",
        b"]=]",
        b"\\",
        b"\n",
        b".",
        b"..",
        b"local ",
        b"=",
        b"\xff",
        b"{",
        b"}",
        b"a",
        b"hyper",
        b".get",
        b"get_all",
        b".request",
        b"url",
        b",",
        b"function ",
        b"for ",
        b" in ",
        b"\\u{",
        b"\\z",
        b"\\x4",
        b"0x",
        b"1e",
        b":",
        b"::",
        b"<",
        b"std:kv",
        b"https://a.b/",
    ];
    let mut seed = 1_u64;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    for _ in 0..20_000 {
        let mut source = HYPER.as_bytes().to_vec();
        for _ in 0..random(40) {
            match random(8) {
                0 => source.push(random(256) as u8),
                _ => source.extend_from_slice(pieces[random(pieces.len() as u64) as usize]),
            }
        }
        let tokens = lexer::tokens(&source);
        let mut end = 0;
        for token in tokens {
            assert!(end <= token.start && token.start < token.end && token.end <= source.len(), "{source:?}");
            end = token.end;
            lexer::value(&source, token);
        }
        for Found { span, .. } in reader::read(&source).0 {
            assert!(span.start < span.end && span.end <= source.len(), "{source:?}");
        }
    }
}

#[test]
fn what_is_found_is_bounded_however_often_it_is_said() {
    let text = format!("'https://a.example/{}'", "x".repeat(8_000));
    for (source, is_cut) in [
        (format!("local a = {text} {}", "hyper.get(a) ".repeat(200)), false),
        (format!("local a = {text} {}", "hyper.get(a) ".repeat(30_000)), true),
        (format!("local a = {text} {}", (0..30_000).map(|n| format!("b{n} = a ")).collect::<String>()), false),
        (format!("local a = 'x' {}", "a = a .. a ".repeat(40_000)), false),
        (
            format!(
                "local a0 = 'x' {}",
                (1..20_000).map(|n| format!("local a{n} = a{0} .. a{0} ", n - 1)).collect::<String>()
            ),
            false,
        ),
        ("require('./a')".repeat(30_000), true),
    ] {
        let (found, cut) = reader::read(format!("{HYPER}{source}").as_bytes());
        assert_eq!(cut, is_cut, "{source:.100}");
        let n_bytes: usize = found
            .iter()
            .map(|found| match &found.what {
                What::Call { target: Some(target), .. } | What::Url(target) => target.text.len() + 100,
                _ => 100,
            })
            .sum();
        assert!(n_bytes <= 2 * 1024 * 1024, "{n_bytes}: {source:.100}");
    }
}

/// Each is read in one pass: one whose work grew with the square of its length would not come to an end.
#[test]
fn the_longest_texts_of_one_piece_are_read_like_others() {
    for piece in [
        "{",
        "`{",
        "[",
        "[=",
        "--[",
        "'",
        "hyper.request{",
        "hyper.get_all{{",
        "local a: (",
        "function(",
        "for a,",
        "a..",
        "require(",
        "local a,",
        "}",
        "]=",
        "--[[]=",
        "hyper.request({url=",
        "`{a",
        "\\",
        "pcall(hyper.get,",
    ] {
        let source = format!("{HYPER}{}", piece.repeat(512 * 1024 / piece.len()));
        let (found, _) = reader::read(source.as_bytes());
        assert!(matches!(&found[0].what, What::Require { name, .. } if name == "vnd:hyper"), "{piece}");
        assert!(found.iter().all(|found| found.span.end <= source.len()), "{piece}");
    }
}

//! `require` of a tenant's own modules: who loads, who waits, what is refused. What names mean is tested with
//! `module/path.rs` and `module/resolve.rs`.

use std::cell::RefCell;
use std::collections::BTreeMap;

use neoc_abi::api::MODULES;
use neoc_abi::event::{Event, Finish, Mode};
use neoc_abi::module::{MAX_PATH_BYTES, MAX_PATHS, Reply};
use neoc_abi::{Operation, Outcome, Reply as AnyReply, module, wire};

use super::{Guest, check, operation_of, requests};
use crate::host::double::SAID;

thread_local! {
    /// The script's folder.
    static FILES: RefCell<BTreeMap<String, String>> = RefCell::default();
}

/// What a host answers.
pub fn find(operation: &module::Operation) -> Outcome {
    let paths = operation.paths();
    assert!(!paths.is_empty() && paths.len() <= MAX_PATHS, "{paths:?}");
    assert!(paths.iter().all(|path| path.len() <= MAX_PATH_BYTES && !path.contains("..")), "{paths:?}");
    FILES.with_borrow(|files| {
        let present: Vec<u32> =
            (0..).zip(paths).filter(|(_, path)| files.contains_key(*path)).map(|(i, _)| i).collect();
        let source = paths.iter().find_map(|path| files.get(path)).cloned().unwrap_or_default();
        Ok(AnyReply::Module(Reply::Found { present, source: source.into() }))
    })
}

/// Answers for modules at once, and leaves the rest to the test.
fn answer_modules(bytes: &[u8]) -> Option<Vec<u8>> {
    match operation_of(bytes) {
        Operation::Module(operation) => Some(wire::encode(&find(&operation)).expect("encodes")),
        _ => None,
    }
}

/// Puts these files beside the script.
pub fn put(files: &[(&str, &str)]) {
    FILES.set(files.iter().map(|(path, source)| ((*path).to_owned(), (*source).to_owned())).collect());
}

/// Runs a script beside these files; what it printed must be `expected`. Once with a host that answers at
/// once, and once with one that takes its time.
fn check_files(files: &[(&str, &str)], source: &str, expected: &str) {
    for answer_at_once in [Some(answer_modules as fn(&[u8]) -> Option<Vec<u8>>), None] {
        put(files);
        SAID.with_borrow_mut(|said| said.answer_at_once = answer_at_once);
        check(source, expected);
    }
}

/// The scopes of the calls of a script, beside these files, with modules that have less.
fn scopes(files: &[(&str, &str)], source: &str, narrowed: &[&str]) -> Vec<u32> {
    put(files);
    SAID.with_borrow_mut(|said| said.answer_at_once = Some(answer_modules));
    let (mut guest, finish) = Guest::load_bundle(source.as_bytes(), Mode::Script, 16 << 20, narrowed);
    assert_eq!(finish, Finish::Done, "{source}");
    guest.start(Event::Run(vec![]));
    let submitted = SAID.with_borrow_mut(|said| std::mem::take(&mut said.submitted));
    let calls = submitted.iter().map(|(_, bytes)| wire::decode::<neoc_abi::Call>(bytes).expect("a call"));
    let of_policy = calls.filter(|call| !matches!(call.operation, Operation::Module(_)));
    of_policy.map(|call| call.scope).collect()
}

#[test]
fn a_call_is_of_the_scope_of_the_module_whose_require_gave_the_function() {
    let lib = "local kv, task = require('std:kv'), require('std:task')
        return function() task.spawn(kv.get, 'k') task.spawn(task.detach, print) end";
    let files = [("a/x.luau", lib), ("a/y/init.luau", lib), ("a/y/z.luau", lib), ("ab.luau", lib)];
    let call = |name: &str| format!("require('./{name}')() require('std:task').spawn(require('std:kv').get, 'k')");
    for (name, expected) in [("a/x", [1, 1, 0]), ("a/y", [2, 2, 0]), ("a/y/z", [2, 2, 0]), ("ab", [0, 0, 0])] {
        assert_eq!(scopes(&files, &call(name), &["a", "a/y", "b"]), expected, "{name}");
    }
}

/// Loads a handler beside these files, with a host that answers at once, as it does while loading.
fn load(files: &[(&str, &str)], source: &str) -> (Guest, Finish) {
    load_as(Mode::Handler, files, source)
}

/// As [`load`], for something else than a handler.
pub fn load_as(mode: Mode, files: &[(&str, &str)], source: &str) -> (Guest, Finish) {
    put(files);
    SAID.with_borrow_mut(|said| said.answer_at_once = Some(answer_modules));
    let loaded = Guest::load(source, mode);
    SAID.with_borrow_mut(|said| said.answer_at_once = None);
    loaded
}

fn request() -> Event<'static> {
    Event::Request(requests::request())
}

/// Serves one request; gives the answer's text.
fn serve(guest: &mut Guest) -> String {
    guest.start(request());
    guest.answer_all();
    match guest.finish() {
        Some(Finish::Response(response)) => String::from_utf8(response.body).expect("text"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_body_runs_once_and_everybody_gets_its_value() {
    check_files(
        &[("a.luau", "print('once', ...) return { n = 1 }"), ("lib/b.luau", "return require('../a')")],
        "local a = require('./a')
         print(a == require('./a'), a == require('./lib/b'), a == require('./lib/../a'), a.n)",
        "once;true\ttrue\ttrue\t1",
    );
    check_files(
        &[("no.luau", "print('once') return false")],
        "print(require('./no'), require('./no'))",
        "once;false\tfalse",
    );
}

#[test]
fn each_kind_of_file_is_found_and_its_folder_is_the_one_that_names_start_from() {
    check_files(
        &[
            ("a.luau", "return 'a'"),
            ("old.lua", "return 'old'"),
            ("lib/init.luau", "return { require('./a'), require('@self/a'), require('@self/deep/c') }"),
            ("lib/a.luau", "return 'lib/a'"),
            ("lib/deep/c.luau", "return 'lib/deep/c ' .. require('../a') .. ' ' .. require('../../a')"),
            ("web/init.lua", "return 'web'"),
        ],
        "print(require('./a'), require('./old'), require('./web'))
         print(table.unpack(require('./lib')))",
        "a\told\tweb;a\tlib/a\tlib/deep/c lib/a a",
    );
}

#[test]
fn aliases_come_from_the_nearest_configuration() {
    check_files(
        &[
            (".luaurc", "{ \"aliases\": { \"lib\": \"./lib\", \"x\": \"./x\" } } // the whole folder's"),
            ("lib/.luaurc", "{ \"aliases\": { \"x\": \"./other/\", }, }"),
            ("x/m.luau", "return 'x/m'"),
            ("lib/other/m.luau", "return 'lib/other/m'"),
            ("lib/a.luau", "return require('@x/m') .. ' ' .. require('@LIB/b')"),
            ("lib/b.luau", "return 'lib/b'"),
        ],
        "print(require('@x/m'), require('@lib/a'))
         print(pcall(require, '@none/m'))",
        "x/m\tlib/other/m lib/b;\
         false\tinvalid: require: \"@none\" no .luaurc in the script's folder or above has this alias",
    );
    check_files(
        &[("a/.luaurc", "{ aliases }"), ("a/b.luau", "return require('@x/y')")],
        "print(pcall(require, './a/b'))",
        "false\tinvalid: require: a/.luaurc: key must be a string at line 1 column 3",
    );
}

#[test]
fn what_is_absent_or_ambiguous_says_what_was_looked_for() {
    check_files(
        &[("a.luau", ""), ("a/init.luau", ""), ("b.luau", "return 1"), ("b.lua", "return 2"), ("c/x.luau", "")],
        "for _, name in { './no', './lib/no', './b.luau', './c', './a', './b' } do
             local _, e = pcall(require, name)
             print(e)
         end",
        "io: require: no module \"no\"; looked for no.luau, no.lua, no/init.luau, no/init.lua;\
         io: require: no module \"lib/no\"; looked for lib/no.luau, lib/no.lua, lib/no/init.luau, lib/no/init.lua;\
         io: require: no module \"b.luau\"; looked for b.luau.luau, b.luau.lua, b.luau/init.luau, b.luau/init.lua; \
         a module is named without its extension;\
         io: require: no module \"c\"; looked for c.luau, c.lua, c/init.luau, c/init.lua;\
         invalid: require: \"a\" could be any of a.luau, a/init.luau; there must be one only;\
         invalid: require: \"b\" could be any of b.luau, b.lua; there must be one only",
    );
}

#[test]
fn a_refused_name_is_never_asked_for() {
    let names = "'../x', './../x', '/etc/passwd', './.luaurc', './a\\\\b', './a\\0', './a//b', './a/', '@self/../../x', '@', \
                 './init', '\\xff./x', './\\xff', ('./' .. string.rep('a', 300)), ('./' .. string.rep('../', 1e5))";
    let mut guest = Guest::run(&format!(
        "for _, name in {{ {names} }} do
             local ok, e = pcall(require, name)
             if ok or e.kind ~= 'invalid' then print(name, e) end
         end"
    ));
    assert_eq!(guest.submitted(), []);
    assert_eq!(guest.finish(), Some(Finish::Done));
    assert_eq!(guest.printed(), "");
}

#[test]
fn a_module_of_ours_has_one_spelling() {
    let ours: Vec<_> = MODULES.iter().map(|module| module.name).filter(|name| !name.is_empty()).collect();
    let mut names = vec![
        String::new(),
        " ".into(),
        "std".into(),
        "std:".into(),
        "vnd:".into(),
        ":".into(),
        "std:unknown".into(),
        "vnd:std:fs".into(),
        "std:std:fs".into(),
        "std:io".into(),
        "std:os".into(),
        "std:debug".into(),
        "[neoc]".into(),
        "a".repeat(64 * 1024),
        format!("std:{}", "f".repeat(64 * 1024)),
        format!("std:fs{}", "\0".repeat(64 * 1024)),
    ];
    for name in &ours {
        let (prefix, own) = name.split_once(':').expect("a prefix");
        let capital = |text: &str| format!("{}{}", text[..1].to_uppercase(), &text[1..]);
        names.extend([
            name.to_uppercase(),
            capital(name),
            format!("{prefix}:{}", own.to_uppercase()),
            format!("{prefix}:{}", capital(own)),
            format!("{}:{own}", prefix.to_uppercase()),
            format!("vnd:{name}"),
            format!("{}:{own}", if prefix == "std" { "vnd" } else { "std" }),
            own.to_string(),
            format!(":{own}"),
            format!("{prefix}::{own}"),
            format!("{prefix}.{own}"),
            format!("{prefix}/{own}"),
            format!("{prefix}\u{ff1a}{own}"),
            format!("@{name}"),
            format!("./{name}"),
            format!("{name}/"),
            format!("{name}:"),
            format!("{name}\u{200b}"),
            format!("\u{feff}{name}"),
        ]);
        for odd in [" ", "\0", "\t", "\n", "\r", "\u{a0}"] {
            names.extend([
                format!("{odd}{name}"),
                format!("{name}{odd}"),
                format!("{prefix}:{odd}{own}"),
                format!("{prefix}{odd}:{own}"),
            ]);
        }
    }
    for name in names {
        let bytes: String = name.bytes().map(|byte| format!("\\x{byte:02x}")).collect();
        let mut guest = Guest::run(&format!(
            "local ok, e = pcall(require, '{bytes}')
             print(ok, type(e) == 'table' and e.kind, #tostring(e) < 1000)"
        ));
        assert_eq!(guest.submitted(), [], "{name:.80?}");
        assert_eq!(guest.finish(), Some(Finish::Done), "{name:.80?}");
        assert_eq!(guest.printed(), "false\tinvalid\ttrue", "{name:.80?}");
    }
    for name in ours {
        check(&format!("print(type(require('{name}')))"), "table");
    }
}

#[test]
fn a_name_is_a_string() {
    let named = "setmetatable({}, { __tostring = function() return 'std:fs' end })";
    for name in ["nil", "1", "true", "{ 'std:fs' }", named, "buffer.fromstring('std:fs')", "print"] {
        let source = format!(
            "local ok, e = pcall(require, {name}) print(ok, e.kind, string.find(e.message, 'must be a string') ~= nil)"
        );
        check(&source, "false\tinvalid\ttrue");
    }
}

#[test]
fn a_module_returns_exactly_one_value() {
    check_files(
        &[
            ("none.luau", ""),
            ("two.luau", "return 1, 2"),
            ("nil.luau", "return nil"),
            ("spread.luau", "return (pcall(error))"),
        ],
        "for _, name in { 'none', 'two', 'nil', 'spread' } do print(pcall(require, './' .. name)) end",
        "false\tinvalid: require: none.luau must return exactly one value, and not nil; got none;\
         false\tinvalid: require: two.luau must return exactly one value, and not nil; got 2 values;\
         false\tinvalid: require: nil.luau must return exactly one value, and not nil; got nil;\
         true\tfalse",
    );
}

#[test]
fn a_failed_load_is_not_kept() {
    check_files(
        &[
            ("a.luau", "tries = 1 if require('./state').fail then error(require('./state').error) end return 'fine'"),
            ("state.luau", "return { fail = true, error = {} }"),
        ],
        "local state = require('./state')
         for i = 1, 2 do print(select(2, pcall(require, './a')) == state.error) end
         state.fail = false
         print(require('./a'))",
        "true;true;fine",
    );
    check_files(
        &[("a.luau", "return = 1"), ("b.luau", "\u{1b}bytecode")],
        "for i = 1, 2 do print(pcall(require, './a')) end print(pcall(require, './b'))",
        "false\tinvalid: require: a.luau:1: Expected identifier when parsing expression, got '=';\
         false\tinvalid: require: a.luau:1: Expected identifier when parsing expression, got '=';\
         false\tinvalid: require: b.luau: not a source text",
    );
}

#[test]
fn globals_of_a_module_are_its_own() {
    check_files(
        &[("a.luau", "x = 'a' y = 'a' return { get = function() return x end }")],
        "x = 'main' local a = require('./a') print(x, y, a.get(), math.floor(1.5))",
        "main\tnil\ta\t1",
    );
}

#[test]
fn a_cycle_is_an_error_that_shows_the_chain() {
    let files = [
        ("a.luau", "return require('./b')"),
        ("b.luau", "return require('./a')"),
        ("self.luau", "return require('@self')"),
        ("back.luau", "return require('./main')"),
    ];
    check_files(
        &files,
        "print(pcall(require, './a')) print(pcall(require, './self')) print(pcall(require, './back'))
         print(pcall(require, './main'))
         require('std:task').spawn(function() print(pcall(require, './back')) end)",
        "false\tinvalid: require: a cycle: main.luau -> a.luau -> b.luau -> a.luau;\
         false\tinvalid: require: a cycle: main.luau -> self.luau -> self.luau;\
         false\tinvalid: require: a cycle: main.luau -> back.luau -> main.luau;\
         false\tinvalid: require: a cycle: main.luau -> main.luau;\
         false\tinvalid: require: a cycle: main.luau -> back.luau -> main.luau",
    );
    // In a request the script itself is loaded, and the chain begins with the file that asks.
    let source = "local m = {} m.http = function() return tostring(select(2, pcall(require, './a'))) .. tostring(m == require('./main')) end return m";
    let (mut guest, loaded) = load(&files, source);
    assert_eq!(loaded, Finish::Done);
    assert_eq!(serve(&mut guest), "invalid: require: a cycle: main.luau -> a.luau -> b.luau -> a.luautrue");
    let (_, loaded) = load(&files, "require('./back')");
    let Finish::Failed(error) = loaded else { panic!("{loaded:?}") };
    assert_eq!(error.message, "back.luau:1: invalid: require: a cycle: main.luau -> back.luau -> main.luau");
    assert_eq!(error.traceback, "back.luau:1\nmain.luau:1");
}

#[test]
fn two_tasks_share_one_load() {
    check_files(
        &[("a.luau", "print('once') require('std:task').wait(1) return {}")],
        "local task = require('std:task')
         local one, two = task.spawn(require, './a'), task.spawn(require, './a')
         print(task.await(one) == task.await(two), task.await(one) == require('./a'))",
        "once;true\ttrue",
    );
    // Both fail with the same error, and the next try is a new one.
    check_files(
        &[("a.luau", "print('try') require('std:task').wait(1) error('broken')")],
        "local task = require('std:task')
         local one, two = task.spawn(pcall, require, './a'), task.spawn(pcall, require, './a')
         print(task.await(one)) print(task.await(two)) print(pcall(require, './a'))",
        "try;false\ta.luau:1: broken;false\ta.luau:1: broken;try;false\ta.luau:1: broken",
    );
}

#[test]
fn a_cycle_by_way_of_several_tasks_is_an_error() {
    check_files(
        &[
            ("a.luau", "require('std:task').wait(1) return require('./b')"),
            ("b.luau", "require('std:task').wait(1) return require('./c')"),
            ("c.luau", "require('std:task').wait(1) return require('./a')"),
        ],
        "local task = require('std:task')
         for _, name in { './a', './b', './c' } do task.spawn(function() print(pcall(require, name)) end) end",
        "false\tinvalid: require: a cycle: main.luau -> a.luau -> b.luau -> c.luau -> a.luau;\
         false\tinvalid: require: a cycle: main.luau -> a.luau -> b.luau -> c.luau -> a.luau;\
         false\tinvalid: require: a cycle: main.luau -> a.luau -> b.luau -> c.luau -> a.luau",
    );
    // A load that awaits a task that requires it.
    check_files(
        &[
            (
                "a.luau",
                "local task = require('std:task') return task.await(task.spawn(function() task.wait(1) return require('./b') end))",
            ),
            ("b.luau", "return require('./a')"),
        ],
        "print(pcall(require, './a'))",
        "false\tinvalid: require: a cycle: main.luau -> a.luau -> b.luau -> a.luau",
    );
}

#[test]
fn modules_of_the_top_level_are_loaded_with_it_and_may_do_no_io() {
    let files = [
        ("a.luau", "print('loading') local n = 0 return function() n += 1 return n end"),
        ("io.luau", "return require('std:kv').get('x')"),
        ("lazy.luau", "return require('std:task').wait(1)"),
    ];
    let (mut guest, loaded) = load(
        &files,
        "local a = require('./a') return function() return `{a()} {require('./a')()} {require('./lazy')}` end",
    );
    assert_eq!((loaded, guest.printed()), (Finish::Done, "loading".into()));
    assert_eq!(serve(&mut guest), "1 2 1");
    assert_eq!(guest.printed(), "");
    for source in ["require('./io')", "coroutine.wrap(require)('./io')"] {
        let (_, loaded) = load(&files, source);
        let Finish::Failed(error) = loaded else { panic!("{loaded:?}") };
        let expected = "io.luau:1: invalid: kv.get: top-level code may not do I/O; move it into the handler";
        assert_eq!(error.message, expected);
    }
}

#[test]
fn a_traceback_names_modules_by_their_paths() {
    let (mut guest, loaded) = load(
        &[("lib/util.luau", "local util = {}\nfunction util.fail()\n  error('no')\nend\nreturn util")],
        "local util = require('./lib/util')\nreturn function()\n  util.fail()\nend",
    );
    assert_eq!(loaded, Finish::Done);
    guest.start(request());
    let error = guest.failure();
    assert_eq!(error.message, "lib/util.luau:3: no");
    assert_eq!(error.traceback, "lib/util.luau:3 function fail\nmain.luau:3");
    // The body's own failure, through two modules.
    let files = [("a.luau", "\nreturn require('./b')"), ("b.luau", "\n\nerror({})")];
    let (_, loaded) = load(&files, "local function f() return require('./a') end\nf()");
    let Finish::Failed(error) = loaded else { panic!("{loaded:?}") };
    assert_eq!(error.traceback, "b.luau:3\na.luau:2\nmain.luau:1 function f\nmain.luau:2");
    assert_eq!(error.message, "b.luau:3: (error object is a table)");
}

#[test]
fn the_requiring_file_is_found_behind_functions_that_are_not_the_scripts() {
    check_files(
        &[
            ("x.luau", "return 'x'"),
            ("lib/x.luau", "return 'lib/x'"),
            (
                "lib/m.luau",
                "local _, a = pcall(require, './x')
                 local b
                 string.gsub('./x', '.+', function(name) b = require(name) end)
                 local c = coroutine.wrap(function() return require('./x') end)()
                 return { a, b, c, get = function() return require('./x') end, require = require }",
            ),
        ],
        "require('./lib/x')
         local m = require('./lib/m')
         print(m[1], m[2], m[3], m.get(), m.require('./x'))
         print(pcall(require, './x'))
         print(coroutine.wrap(require)('./x'))
         print(coroutine.resume(coroutine.create(require), './lib/x'))",
        "lib/x\tlib/x\tlib/x\tlib/x\tx;true\tx;x;true\tlib/x",
    );
}

#[test]
fn a_module_may_wait_but_not_yield() {
    check_files(
        &[
            (
                "a.luau",
                "thread = coroutine.running() keep = require('./kept') keep.thread = thread coroutine.yield() return 1",
            ),
            ("kept.luau", "return {}"),
        ],
        "for i = 1, 2 do print(coroutine.wrap(function() return pcall(require, './a') end)()) end
         print(coroutine.status(require('./kept').thread))",
        "false\tinvalid: require: a.luau: a module's top level may wait for what it calls, but not yield;\
         false\tinvalid: require: a.luau: a module's top level may wait for what it calls, but not yield;\
         dead",
    );
}

#[test]
fn nesting_is_bounded() {
    let names: Vec<_> = (0..=70).map(|n| (format!("m{n}.luau"), format!("return require('./m{}')", n + 1))).collect();
    let files: Vec<_> = names.iter().map(|(path, source)| (path.as_str(), source.as_str())).collect();
    check_files(
        &files,
        "local _, e = pcall(require, './m0') print(e.kind, e.limit)
         local _, e = pcall(require, './m70') print(e.kind)",
        "limit\tmodule_depth;io",
    );
    let chain: Vec<_> = files
        .iter()
        .map(|(path, source)| (*path, if *path == "m62.luau" { "return 'deep'" } else { source }))
        .collect();
    check_files(&chain, "print(require('./m0'))", "deep");
}

#[test]
fn a_request_that_ended_leaves_no_load_behind() {
    let files = [("slow.luau", "require('std:task').wait(1) return 'slow'")];
    let source = "local task = require('std:task')
        return function() task.spawn(require, './slow') task.wait(1) if not again then again = true error('x') end return require('./slow') end";
    let (mut guest, _) = load(&files, source);
    guest.start(request());
    let submitted = guest.submitted();
    let wait =
        submitted.iter().find(|(_, operation)| matches!(operation, Operation::Time(_))).expect("the handler waits");
    guest.complete(vec![(wait.0, super::answer(wait.1.clone()))]);
    guest.answer_all();
    assert!(matches!(guest.finish(), Some(Finish::Failed(_))));
    assert_eq!(serve(&mut guest), "slow");
}

#[test]
fn a_waiting_task_takes_over_from_a_cancelled_one() {
    // Cancelled while the host looks for the file, or while the body waits.
    for moment in ["", "repeat task.wait(1) until require('./state').n == 1"] {
        check_files(
            &[
                ("a.luau", "require('./state').n += 1 for _ = 1, 5 do require('std:task').wait(1) end return {}"),
                ("state.luau", "return { n = 0 }"),
            ],
            &format!(
                "local task = require('std:task')
                 local loader, others = task.spawn(require, './a'), {{}}
                 for i = 1, 3 do others[i] = task.spawn(require, './a') end
                 {moment}
                 task.cancel(loader)
                 print(task.try_await(loader))
                 local a = task.await(others[1])
                 print(a == task.await(others[2]), a == task.await(others[3]), a == require('./a'))
                 print(require('./state').n <= 2)"
            ),
            "false\tcancelled: the task was cancelled;true\ttrue\ttrue;true",
        );
    }
    // One that waits can be cancelled as well, and the load goes on.
    check_files(
        &[
            ("a.luau", "require('./state').n += 1 require('std:task').wait(1) return 'a'"),
            ("state.luau", "return { n = 0 }"),
        ],
        "local task = require('std:task')
         local loader, other = task.spawn(require, './a'), task.spawn(require, './a')
         task.cancel(other)
         print(task.try_await(other))
         print(task.await(loader), require('./state').n)",
        "false\tcancelled: the task was cancelled;a\t1",
    );
}

#[test]
fn a_load_whose_task_ends_without_a_word_is_taken_over() {
    check_files(
        &[
            (
                "a.luau",
                "local task = require('std:task')
             print('the body')
             local state = require('./state')
             state.n += 1
             if state.n == 1 then while true do pcall(task.wait, 1) end end
             return 'a'",
            ),
            ("state.luau", "return { n = 0 }"),
        ],
        "local task = require('std:task')
         local loader, other = task.spawn(require, './a'), task.spawn(require, './a')
         repeat task.wait(1) until require('./state').n == 1
         task.cancel(loader)
         print(task.await(other), require('./state').n)",
        "the body;the body;a\t2",
    );
}

#[test]
fn a_module_loads_where_luau_cannot_yield() {
    check_files(
        &[("lib/a.luau", "require('std:task').wait(1) return 'a'"), ("lib/b.luau", "return require('./a') .. 'b'")],
        "local lazy = setmetatable({}, { __index = function(_, name) return require('./lib/' .. name) end })
         print(lazy.b, (string.gsub('x', 'x', function() return lazy.a end)))",
        "ab\ta",
    );
    // There, too, one waits for another task's load.
    check_files(
        &[("a.luau", "print('once') require('std:task').wait(1) return 'a'")],
        "local task = require('std:task')
         task.spawn(require, './a')
         local lazy = setmetatable({}, { __index = function(_, name) return require('./' .. name) end })
         print(lazy.a)",
        "once;a",
    );
    // Whatever it is that waits, the log names what the script has called.
    put(&[("a.luau", "require('std:task').wait(1) return 'a'")]);
    let mut guest = Guest::run("print(setmetatable({}, { __index = function() return require('./a') end }).x)");
    let stalls = guest.stalls();
    assert!(!stalls.is_empty() && stalls.iter().all(|place| place == "main.luau:1: require"), "{stalls:?}");
}

#[test]
fn a_load_that_waits_for_nothing_is_no_cycle() {
    check_files(
        &[("a.luau", "return require('std:task').channel(1):get()")],
        "local task = require('std:task')
         local loader = task.spawn(require, './a')
         print(pcall(require, './a'))
         task.cancel(loader)",
        "false\tinvalid: require: all tasks wait for each other, and nothing can wake them",
    );
}

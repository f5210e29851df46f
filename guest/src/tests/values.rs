//! Values on their way to another VM: what crosses comes back the same, the rest is refused by its place.

use mlua::Lua;
use neoc_abi::value::{Token, put};

use super::check;
use crate::failure::{ErrorMetatable, Failure};
use crate::value::{Packer, unpack_row};

/// A module's worth of Luau: `same(a, b)`, and `there_and_back(value)` through an echoing host.
const HELPERS: &str = "
    local workers = require('std:workers')
    local function same(a, b)
        if type(a) ~= type(b) then return false end
        if type(a) == 'number' then return string.pack('d', a) == string.pack('d', b) end
        if type(a) == 'buffer' then return a ~= b and buffer.tostring(a) == buffer.tostring(b) end
        if type(a) ~= 'table' then return a == b end
        if a == b or #a ~= #b then return false end
        for key, value in a do if not same(value, b[key]) then return false end end
        for key in b do if a[key] == nil then return false end end
        return true
    end
    local function there_and_back(...) return workers.run('./m', ...) end
    ";

fn check_with_helpers(source: &str, expected: &str) {
    check(&format!("{HELPERS}{source}"), expected);
}

#[test]
fn what_can_be_copied_comes_back_the_same() {
    let values = [
        "true",
        "false",
        "0",
        "-0",
        "0/0",
        "-(0/0)",
        "math.huge",
        "-math.huge",
        "5e-324",
        "2^53 + 1",
        "-1.5",
        "''",
        "'\\0\\255\\n'",
        "string.rep('x', 1e6)",
        "buffer.create(0)",
        "buffer.fromstring('\\0\\1\\255')",
        "vector.create(1, -0, math.huge)",
        "{}",
        "{ 1, 'two', true }",
        "{ 1, nil, 3 }",
        "{ nil, nil, 3 }",
        "{ a = 1, ['b c'] = 2, [''] = 3 }",
        "{ [0] = 0, [-1] = 1, [0.5] = 2, [2^60] = 3, [1e300] = 4, [true] = 5, [vector.one] = 6 }",
        "{ 1, 2, x = { { {} } }, [5] = 5 }",
        "table.freeze({ 1 })",
        "table.create(1e5, 7)",
    ];
    for value in values {
        check_with_helpers(&format!("local v = {value} print(same(v, there_and_back(v)))"), "true");
    }
}

#[test]
fn nils_between_and_behind_are_counted() {
    check_with_helpers(
        "print(select('#', there_and_back()), select('#', there_and_back(nil)))
         print(there_and_back(nil, 1, nil, nil))",
        "0\t1;nil\t1\tnil\tnil",
    );
}

#[test]
fn random_trees_come_back_the_same() {
    check_with_helpers(
        "math.randomseed(1)
         local makers
         local function value(depth) return makers[math.random(if depth < 6 then #makers else #makers - 2)](depth) end
         makers = {
             function() return math.random(-5, 5) end,
             function() return math.random() * 2 ^ math.random(-1000, 1000) end,
             function() return math.random() < 0.5 end,
             function() return string.rep(string.char(math.random(0, 255)), math.random(0, 200)) end,
             function() return buffer.fromstring(string.rep('b', math.random(0, 9))) end,
             function() return vector.create(math.random(), math.random(), math.random()) end,
             function(depth)
                 local t = {}
                 for i = 1, math.random(0, 6) do t[i] = value(depth + 1) end
                 return t
             end,
             function(depth)
                 local t = {}
                 for i = 1, math.random(0, 6) do
                     local key = value(9)
                     if type(key) ~= 'buffer' then t[key] = value(depth + 1) end
                 end
                 return t
             end,
         }
         local n = 0
         for i = 1, 500 do
             local v = value(0)
             if same(v, there_and_back(v)) then n += 1 end
         end
         print(n)",
        "500",
    );
}

#[test]
fn a_copy_is_the_scripts_own() {
    check_with_helpers(
        "local shared = { 1 }
         local a, b = there_and_back(table.freeze({ shared, shared }), shared)
         print(a[1] == a[2], a[1] == b, table.isfrozen(a))",
        "false\tfalse\tfalse",
    );
}

#[test]
fn what_cannot_be_copied_is_refused_by_its_place() {
    let cases = [
        ("print", "args[1]: a function cannot be copied to another VM"),
        ("coroutine.create(print)", "args[1]: a thread cannot be copied to another VM"),
        ("require('std:json').null", "args[1]: a userdata cannot be copied to another VM"),
        ("{ x = print }", "args[1].x: a function cannot be copied to another VM"),
        ("1, { { a = { print } } }", "args[2][1].a[1]: a function cannot be copied to another VM"),
        ("{ ['on load'] = print }", "args[1][\"on load\"]: a function cannot be copied to another VM"),
        ("{ [true] = print }", "args[1][true]: a function cannot be copied to another VM"),
        ("{ [0.5] = print }", "args[1][0.5]: a function cannot be copied to another VM"),
        ("{ ['1st'] = print }", "args[1][\"1st\"]: a function cannot be copied to another VM"),
        ("{ ['\\n\\0'] = print }", "args[1][\"\\n\\0\"]: a function cannot be copied to another VM"),
        ("{ a = setmetatable({}, {}) }", "args[1].a: a table with a metatable cannot be copied to another VM"),
        ("{ [{}] = 1 }", "args[1]: a key that is a table cannot be copied"),
        ("{ [buffer.create(1)] = 1 }", "args[1]: a key that is a buffer cannot be copied"),
        ("{ [print] = 1 }", "args[1]: a function cannot be copied to another VM"),
    ];
    for (arguments, message) in cases {
        let expected = format!("false\tinvalid\tworkers.run: {message}");
        check_with_helpers(
            &format!("local ok, e = pcall(there_and_back, {arguments}) print(ok, e.kind, e.message)"),
            &expected,
        );
    }
    check_with_helpers(
        "local ok, e = pcall(workers.map, './m', { 1, { b = print } }) print(e.message)",
        "workers.map: list[2].b: a function cannot be copied to another VM",
    );
}

#[test]
fn nesting_ends_at_64_tables() {
    check_with_helpers(
        "local function nested(n) local t = {} for _ = 2, n do t = { t } end return t end
         print(same(nested(64), there_and_back(nested(64))))
         for _, t in { nested(65), (function() local t = {} t.t = t return { t } end)() } do
             local _, e = pcall(there_and_back, t)
             print(e.kind, string.match(e.message, ': [^:]+$'))
         end",
        "true;invalid\t: nested deeper than 64 tables, or in a circle;\
         invalid\t: nested deeper than 64 tables, or in a circle",
    );
}

#[test]
fn all_values_of_a_call_take_ten_mebibytes_at_most() {
    check_with_helpers(
        "local big = string.rep('x', 5 * 1024 * 1024)
         print(pcall(workers.map, './m', { big, big }))
         local t = { 1 }
         for _ = 1, 60 do t = { t, t } end
         for _, call in { function() there_and_back(big, big) end, function() there_and_back(t) end } do
             local _, e = pcall(call)
             print(e)
         end",
        "false\tlimit: workers.map: the values take more than 10485760 bytes;\
         limit: workers.run: the values take more than 10485760 bytes;\
         limit: workers.run: the values take more than 10485760 bytes",
    );
}

#[test]
fn unpacking_without_memory_is_an_error_of_luaus_own() {
    let lua = Lua::new();
    let value = lua.load("return table.create(1e5, 'x')").eval().expect("runs");
    let mut packer = Packer::new(&lua, "api");
    assert!(packer.add("v", &value).is_ok());
    let row = packer.take();
    lua.set_memory_limit(lua.used_memory() + 1000).expect("sets");
    let Err(Failure::Luau(error)) = unpack_row(&lua, &row) else { panic!("it fits") };
    assert_eq!(crate::failure::describe_error(&error), "not enough memory");
}

#[test]
fn bytes_that_are_no_values_are_an_error() {
    let lua = Lua::new();
    lua.set_memory_limit(64 << 20).expect("sets");
    lua.set_app_data(ErrorMetatable(lua.create_table().expect("a table")));
    let value = lua.load("return { 1, 'two', { x = buffer.create(3), y = vector.one }, [true] = 0.5 }").eval();
    let mut packer = Packer::new(&lua, "api");
    assert!(packer.add("v", &value.expect("runs")).is_ok());
    let row = packer.take().into_vec();
    for end in 1..row.len() {
        assert!(unpack_row(&lua, &row[..end]).is_err(), "{end}");
    }
    // A multiplicative generator: the same bytes in each run of the test.
    let mut random = 1_u64;
    let mut below = |end: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % end
    };
    for _ in 0..10_000 {
        let mut broken = row.clone();
        for _ in 0..=below(3) {
            let at = below(broken.len());
            broken[at] = below(256) as u8;
        }
        // Whatever comes of it, it comes back.
        let _ = unpack_row(&lua, &broken);
    }
}

#[test]
fn a_table_that_claims_too_much_is_an_error() {
    let lua = Lua::new();
    let rows = [
        vec![Token::Table { n_array: u32::MAX, n_map: 0 }],
        vec![Token::Table { n_array: 0, n_map: u32::MAX }, Token::Nil],
        vec![Token::Table { n_array: 0, n_map: 1 }, Token::Nil, Token::Nil],
        vec![Token::Table { n_array: 0, n_map: 1 }, Token::Number(f64::NAN), Token::Nil],
        vec![Token::Table { n_array: 1, n_map: 0 }; 65],
    ];
    for tokens in rows {
        let row = tokens.iter().try_fold(Vec::new(), put).expect("packs");
        assert!(matches!(unpack_row(&lua, &row), Err(Failure::Operation(_))), "{tokens:?}");
    }
}

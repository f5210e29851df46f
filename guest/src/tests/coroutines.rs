//! I/O inside a script's own coroutines suspends the whole task, and nobody sees the scheduler's yield.

use neoc_abi::event::Finish;

use super::{Guest, check};

const TASK: &str = "local task = require('std:task')\n";

fn check_coroutine(source: &str, expected: &str) {
    check(&format!("{TASK}{source}"), expected);
}

#[test]
fn resume_does_not_return_before_the_coroutine_yields_itself() {
    check_coroutine(
        "local co = coroutine.create(function(a)
             local b = coroutine.yield(a + task.wait(1))
             task.wait(2) task.wait(3)
             return b, nil, 'end'
         end)
         print(coroutine.resume(co, 10))
         print(coroutine.resume(co, 20))
         print(coroutine.status(co), coroutine.resume(co))",
        "true\t11;true\t20\tnil\tend;dead\tfalse\tcannot resume dead coroutine",
    );
}

#[test]
fn a_wrapped_generator_may_wait() {
    check_coroutine(
        "local function numbers() for i = 1, 3 do task.wait(i) coroutine.yield(i) end end
         for i in coroutine.wrap(numbers) do print(i) end",
        "1;2;3",
    );
}

#[test]
fn waiting_works_at_any_depth_of_coroutines() {
    check_coroutine(
        "local function nest(n)
             if n == 0 then task.wait(1) return 'deep' end
             return coroutine.wrap(nest)(n - 1)
         end
         print(nest(20))",
        "deep",
    );
}

#[test]
fn other_tasks_run_while_a_coroutine_waits() {
    check_coroutine(
        "task.spawn(function() coroutine.wrap(function() task.wait(1) print('inner') end)() print('after') end)
         print('other')",
        "other;inner;after",
    );
}

#[test]
fn a_waiting_coroutine_is_normal_to_other_tasks() {
    check_coroutine(
        "local co = coroutine.create(function() task.wait(1) return 'mine' end)
         local owner = task.spawn(function() return coroutine.resume(co) end)
         print(coroutine.status(co), coroutine.resume(co))
         print(pcall(coroutine.close, co))
         print(task.await(owner))",
        "normal\tfalse\tcannot resume normal coroutine;false\tcannot close normal coroutine;true\tmine",
    );
}

#[test]
fn a_tasks_own_thread_cannot_be_resumed_or_closed() {
    check_coroutine(
        "local thread
         task.spawn(function() thread = coroutine.running() task.wait(1) print('still here') end)
         print(coroutine.status(thread), coroutine.resume(thread), (pcall(coroutine.close, thread)))
         print(coroutine.resume(coroutine.running()))",
        "normal\tfalse\tfalse;false\tcannot resume running coroutine;still here",
    );
}

#[test]
fn errors_come_through_as_in_plain_luau() {
    check_coroutine(
        "local value = {}
         print(coroutine.resume(coroutine.create(function() task.wait(1) error('text') end)))
         print(select(2, coroutine.resume(coroutine.create(function() error(value) end))) == value)
         print(pcall(function() coroutine.wrap(function() error('text') end)() end))
         print(select(2, pcall(coroutine.wrap(function() task.wait(1) error(value) end))) == value)
         print(coroutine.resume(coroutine.create(function() task.wait('x') end)))",
        "false\tmain.luau:3: text;true;false\tmain.luau:5: main.luau:5: text;true;\
         false\tinvalid: task.wait: seconds must be a number, got string",
    );
}

#[test]
fn the_rest_of_the_library_is_as_in_plain_luau() {
    check_coroutine(
        "local co = coroutine.create(function() coroutine.yield() end)
         coroutine.resume(co)
         print(coroutine.status(co), coroutine.close(co), coroutine.status(co), coroutine.isyieldable())
         print(pcall(coroutine.resume, 1))
         print(pcall(coroutine.status))
         print(pcall(coroutine.wrap, {}))
         print(type(coroutine.running()))
         local failed = coroutine.create(error)
         coroutine.resume(failed, 'e')
         print(coroutine.close(failed))",
        "suspended\ttrue\tdead\ttrue;\
         false\tinvalid argument #1 to 'resume' (thread expected, got number);\
         false\tinvalid argument #1 to 'status' (thread expected, got nil);\
         false\tinvalid argument #1 to 'wrap' (function expected, got table);\
         thread;false\te",
    );
}

#[test]
fn where_luau_cannot_yield_a_call_has_the_vm_stand_still() {
    check_coroutine(
        "local t = setmetatable({}, { __index = function() return task.wait(1) end })
         print(pcall(function() return t.x end))
         local list = { 2, 3, 1 }
         table.sort(list, function(a, b) task.wait(1) return a < b end)
         print(table.concat(list))
         print(string.gsub('ab', '%w', function(c) task.wait(1) return string.upper(c) end))
         print(string.gsub('a', 'a', coroutine.wrap(function() task.wait(1) return 'wrapped' end)))
         print(xpcall(error, function(e) task.wait(1) return 'handled ' .. e end, 'e'))",
        "true\t1;123;AB\t2;wrapped\t1;false\thandled e",
    );
}

#[test]
fn a_stall_says_where_it_is() {
    let source = "local t = setmetatable({}, { __index = function()
                      return task.wait(1)
                  end })
                  print(t.x)";
    let mut guest = Guest::run(&format!("{TASK}{source}"));
    assert_eq!(guest.stalls(), ["main.luau:3: task.wait"]);
    assert_eq!(guest.finish(), Some(Finish::Done));
    let source = "local function wait() task.wait(1) end
                  string.gsub('a', 'a', function() coroutine.resume(coroutine.create(wait)) end)
                  string.gsub('a', 'a', function() coroutine.wrap(wait)() end)";
    let mut guest = Guest::run(&format!("{TASK}{source}"));
    assert_eq!(guest.stalls(), ["main.luau:3: coroutine.resume", "main.luau:4: coroutine.wrap"]);
    let mut guest = Guest::run(&format!("{TASK}task.wait(1)"));
    guest.answer_all();
    assert_eq!(guest.stalls(), [""; 0]);
}

#[test]
fn a_stall_that_waits_for_tasks_lets_them_run() {
    check_coroutine(
        "local ch = task.channel(1)
         local t = setmetatable({}, { __index = function(_, key)
             if key == 'channel' then return ch:get() end
             return task.await(task.defer(function() task.wait(1) return 'deferred' end))
         end })
         task.defer(function() task.wait(1) ch:put('put') end)
         print(t.task, t.channel)",
        "deferred\tput",
    );
}

#[test]
fn a_stall_that_can_never_end_is_refused() {
    check_coroutine(
        "local t = setmetatable({}, { __index = function() return task.channel(1):get() end })
         print(pcall(function() return t.x end))",
        "false\tinvalid: channel:get: all tasks wait for each other, and nothing can wake them",
    );
    // A task that stands further down the stack cannot go on before the one on top has.
    check_coroutine(
        "local first = task.current()
         local inner = setmetatable({}, { __index = function() return task.await(first) end })
         local t = setmetatable({}, { __index = function()
             return task.await(task.defer(function() return select(2, pcall(function() return inner.x end)) end))
         end })
         print(t.x)",
        "invalid: task.await: these tasks would await each other for ever",
    );
}

#[test]
fn stalls_on_top_of_each_other_are_bounded() {
    check_coroutine(
        "local function nest(depth)
             local child
             local t = setmetatable({}, { __index = function()
                 child = task.defer(function() return nest(depth + 1) end)
                 return task.await(child)
             end })
             local ok, result = pcall(function() return t.x end)
             if ok then return result end
             task.cancel(child)
             return `{depth} {result.kind} {result.limit}`
         end
         print(nest(1))",
        "9 limit stall_depth",
    );
}

#[test]
fn as_many_tasks_as_like_may_wait_for_the_host_where_luau_cannot_yield() {
    check_coroutine(
        "local tasks = {}
         for i = 1, 20 do
             tasks[i] = task.spawn(function()
                 task.wait(0)
                 local function wait() task.wait(1) return i end
                 local t = setmetatable({}, { __index = function(_, key)
                     return if key == 'coroutine' then coroutine.wrap(wait)() else wait()
                 end })
                 return t.coroutine + t.plain
             end)
         end
         local sum = 0
         for _, result in task.await_all(tasks) do sum += result end
         print(sum)",
        "420",
    );
    // So they may on top of as many calls as can wait for tasks.
    check_coroutine(
        "local function nest(depth)
             local t = setmetatable({}, { __index = function()
                 if depth > 8 then return task.wait(1) end
                 return 1 + task.await(task.defer(nest, depth + 1))
             end })
             return t.x
         end
         print(nest(1))",
        "9",
    );
}

#[test]
fn a_coroutine_whose_stall_is_refused_leaves_its_place_in_line() {
    check_coroutine(
        "local ch = task.channel(1)
         local function nest(depth)
             local child
             local t = setmetatable({}, { __index = function()
                 if depth == 9 then return coroutine.wrap(function() ch:get() end)() end
                 child = task.defer(nest, depth + 1)
                 return task.await(child)
             end })
             local ok, result = pcall(function() return t.x end)
             if not ok and child then task.cancel(child) end
             return if ok then result else result.limit
         end
         print(nest(1))
         -- The garbage is not collected meanwhile.
         print(ch:put('kept'), ch:get(0))",
        "stall_depth;true\tkept",
    );
}

#[test]
fn waiting_works_inside_protected_calls_and_iterators() {
    check_coroutine(
        "print(pcall(function() return task.wait(1) end))
         print(xpcall(function() task.wait(1) error('e') end, function(e) return 'handled ' .. e end))
         local function iterate(_, i) task.wait(1) if i < 2 then return i + 1 end end
         for i in iterate, nil, 0 do print(i) end",
        "true\t1;false\thandled main.luau:3: e;1;2",
    );
}

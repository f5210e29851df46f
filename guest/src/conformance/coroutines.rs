//! Natives that yield, call what yields, and resume, as cyield.luau, iter.luau, pcall.luau and
//! coroutinehost.luau expect them.

use std::ffi::CStr;
use std::os::raw::{c_char, c_int, c_void};

use mlua::ffi::*;
use mlua::{Lua, Table};

use super::native::{claim, natives, set};

unsafe extern "C-unwind" {
    fn lua_hasfinalizers(state: *mut lua_State) -> c_int;
    fn lua_pushfinalizerfunction(state: *mut lua_State);
}

/// For cyield.luau.
pub fn yielding(lua: &Lua, globals: &Table) -> mlua::Result<()> {
    let natives: [(&CStr, lua_CFunction, lua_Continuation); 10] = [
        (c"singleYield", single, after_single),
        (c"multipleYields", multiple, after_multiple),
        (c"multipleYieldsWithNestedCall", nested, after_nested),
        (c"passthroughCall", pass_copies, after_pass_copies),
        (c"passthroughCallMoreResults", pass_more_results, after_pass_more_results),
        (c"passthroughCallArgReuse", pass_itself, after_pass_itself),
        (c"passthroughCallVaradic", pass_all, after_pass_all),
        (c"passthroughCallWithState", pass_with_state, after_pass_with_state),
        (c"pcallThenCall", protected_then, then_call),
        (c"pcallThenPcall", protected_then, then_protected),
    ];
    natives.into_iter().try_for_each(|(name, native, after)| set(lua, globals, name, native, Some(after)))
}

natives! {
    fn single(state) {
        lua_pushnumber(state, 2.0);
        lua_yield(state, 1)
    }
    fn after_single(state, _status) {
        lua_pushnumber(state, 4.0);
        1
    }

    // Yields its argument and 1, 2 and 3 more, and returns 4 more. The second slot counts.
    fn multiple(state) {
        lua_settop(state, 1);
        lua_pushnumber(state, 0.0);
        one_more(state)
    }
    fn after_multiple(state, _status) {
        one_more(state)
    }

    // Calls `inner`, yields what that gives, then 200 and its argument; returns 210 and its argument. The
    // third slot counts.
    fn nested(state) {
        let inner_yields = luaL_checkboolean(state, 2) != 0;
        lua_settop(state, 2);
        lua_pushnumber(state, 0.0);
        if inner_yields {
            lua_pushcclosurek(state, inner, std::ptr::null(), 0, Some(after_inner));
        } else {
            lua_pushcclosurek(state, inner_at_once, std::ptr::null(), 0, None);
        }
        lua_pushnumber(state, 5.0);
        lua_callyieldable(state, 1, 1)
    }
    fn after_nested(state, _status) {
        let step = lua_tonumberx(state, 3, std::ptr::null_mut());
        lua_pushnumber(state, step + 1.0);
        lua_replace(state, 3);
        if step == 0.0 {
            return lua_yield(state, lua_gettop(state) - 3);
        }
        let argument = luaL_checknumber(state, 1);
        lua_pushnumber(state, argument + if step == 1.0 { 200.0 } else { 210.0 });
        if step == 1.0 { lua_yield(state, 1) } else { 1 }
    }
    fn inner(state) {
        lua_pushnumber(state, 100.0 + luaL_checknumber(state, 1));
        lua_yield(state, 1)
    }
    fn after_inner(state, _status) {
        lua_pushnumber(state, 110.0 + luaL_checknumber(state, 1));
        1
    }
    fn inner_at_once(state) {
        lua_pushnumber(state, 105.0 + luaL_checknumber(state, 1));
        1
    }

    // Each of these calls its first argument with the others, and gives 0.5, the quotient of 1 and 2.
    fn pass_copies(state) {
        for argument in 1..=3 {
            lua_pushvalue(state, argument);
        }
        lua_callyieldable(state, 2, 1)
    }
    fn after_pass_copies(state, _status) {
        claim_half_at(state, 4);
        1
    }
    fn pass_more_results(state) {
        for argument in 1..=3 {
            lua_pushvalue(state, argument);
        }
        lua_callyieldable(state, 2, 10)
    }
    fn after_pass_more_results(state, _status) {
        claim(state, lua_gettop(state) == 13, c"expected three arguments and ten results");
        for missing in 5..=13 {
            claim(state, lua_type(state, missing) == LUA_TNIL, c"expected nil for each result that there is not");
        }
        lua_settop(state, 4);
        claim_half_at(state, 4);
        1
    }
    fn pass_itself(state) {
        lua_callyieldable(state, 2, 1)
    }
    fn after_pass_itself(state, _status) {
        claim_half_at(state, 1);
        1
    }
    fn pass_all(state) {
        luaL_checkany(state, 1);
        lua_callyieldable(state, lua_gettop(state) - 1, LUA_MULTRET)
    }
    fn after_pass_all(state, _status) {
        lua_gettop(state)
    }
    fn pass_with_state(state) {
        luaL_checkany(state, 1);
        let n_arguments = lua_gettop(state) - 1;
        lua_pushnumber(state, 42.0);
        lua_insert(state, 1);
        lua_callyieldable(state, n_arguments, LUA_MULTRET)
    }
    fn after_pass_with_state(state, _status) {
        claim(state, luaL_checknumber(state, 1) == 42.0, c"expected the state in its slot");
        lua_gettop(state) - 1
    }

    // Calls both arguments, the first protected, and gives the product of their results, -1 for an error.
    // The third slot says whether the second call is under way, the fourth has the first result.
    fn protected_then(state) {
        lua_settop(state, 2);
        lua_pushboolean(state, 0);
        lua_pushnumber(state, 0.0);
        lua_pushvalue(state, 1);
        lua_pcallyieldable(state, 0, 1, 0)
    }
    fn then_call(state, status) {
        if lua_toboolean(state, 3) != 0 {
            return product(state, status);
        }
        keep_first(state, status);
        lua_callyieldable(state, 0, LUA_MULTRET)
    }
    fn then_protected(state, status) {
        if lua_toboolean(state, 3) != 0 {
            return product(state, status);
        }
        keep_first(state, status);
        lua_pcallyieldable(state, 0, LUA_MULTRET, 0)
    }
}

unsafe fn one_more(state: *mut lua_State) -> c_int {
    // SAFETY: called by natives, which vouch for the state.
    unsafe {
        let count = lua_tonumberx(state, 2, std::ptr::null_mut()) + 1.0;
        lua_pushnumber(state, count);
        lua_replace(state, 2);
        lua_pushnumber(state, luaL_checknumber(state, 1) + count);
        if count < 4.0 { lua_yield(state, 1) } else { 1 }
    }
}

unsafe fn claim_half_at(state: *mut lua_State, top: c_int) {
    // SAFETY: called by natives, which vouch for the state.
    unsafe {
        claim(state, lua_gettop(state) == top, c"expected one result on top of the arguments");
        claim(state, lua_tonumberx(state, top, std::ptr::null_mut()) == 0.5, c"expected 0.5");
    }
}

unsafe fn result(state: *mut lua_State, status: c_int) -> f64 {
    // SAFETY: called by natives, which vouch for the state.
    if status == LUA_OK { unsafe { lua_tonumberx(state, -1, std::ptr::null_mut()) } } else { -1.0 }
}

unsafe fn keep_first(state: *mut lua_State, status: c_int) {
    // SAFETY: called by natives, which vouch for the state.
    unsafe {
        lua_pushnumber(state, result(state, status));
        lua_replace(state, 4);
        lua_pushboolean(state, 1);
        lua_replace(state, 3);
        lua_settop(state, 4);
        lua_pushvalue(state, 2);
    }
}

unsafe fn product(state: *mut lua_State, status: c_int) -> c_int {
    // SAFETY: called by natives, which vouch for the state.
    unsafe {
        lua_pushnumber(state, lua_tonumberx(state, 4, std::ptr::null_mut()) * result(state, status));
        1
    }
}

/// For iter.luau: an iterator that yields each number before it gives it.
pub fn iterating(lua: &Lua, globals: &Table) -> mlua::Result<()> {
    set(lua, globals, c"cYieldingIterator", iterate, Some(after_iterate))
}

natives! {
    fn iterate(state) {
        let (last, current) = (luaL_checknumber(state, 1), luaL_checknumber(state, 2));
        if current >= last {
            return 0;
        }
        lua_pushnumber(state, current + 1.0);
        lua_yield(state, 1)
    }
    fn after_iterate(state, _status) {
        let current = luaL_checknumber(state, 2);
        lua_pushnumber(state, current + 1.0);
        lua_pushnumber(state, current + 1.0);
        2
    }
}

/// For pcall.luau.
pub fn failing(lua: &Lua, globals: &Table) -> mlua::Result<()> {
    set(lua, globals, c"cxxthrow", throw, None)?;
    set(lua, globals, c"resumeerror", resume_with_error, None)
}

unsafe extern "C-unwind" {
    fn __cxa_allocate_exception(size: usize) -> *mut c_void;
    fn __cxa_throw(exception: *mut c_void, type_info: *const c_void, destroy: unsafe extern "C" fn(*mut c_void)) -> !;
    /// `std::runtime_error::runtime_error(char const*)`
    #[link_name = "_ZNSt13runtime_errorC1EPKc"]
    fn make_runtime_error(error: *mut c_void, message: *const c_char) -> *mut c_void;
}
unsafe extern "C" {
    /// `std::runtime_error::~runtime_error()`
    #[link_name = "_ZNSt13runtime_errorD1Ev"]
    fn destroy_runtime_error(error: *mut c_void);
    /// The type's description, by which it is caught.
    #[link_name = "_ZTISt13runtime_error"]
    static RUNTIME_ERROR: c_void;
}

natives! {
    // Throws `std::runtime_error("oops")`, which is what a fault of C++ code would look like.
    fn throw(_state) {
        // A pointer to the class's functions and one to the message.
        let error = __cxa_allocate_exception(2 * size_of::<*const c_void>());
        make_runtime_error(error, c"oops".as_ptr());
        __cxa_throw(error, &raw const RUNTIME_ERROR, destroy_runtime_error)
    }
    // Resumes a coroutine, its first argument, with an error, its second.
    fn resume_with_error(state) {
        luaL_checktype(state, 1, LUA_TTHREAD);
        lua_settop(state, 2);
        let coroutine = lua_tothread(state, 1);
        lua_xmove(state, coroutine, 1);
        lua_resumeerror(coroutine, state);
        0
    }
}

/// For coroutinehost.luau.
pub fn resuming(lua: &Lua, globals: &Table) -> mlua::Result<()> {
    set(lua, globals, c"hostresume", resume, None)
}

natives! {
    // Resumes a coroutine as a host does, and once it has ended calls what waits for that.
    fn resume(state) {
        luaL_checktype(state, 1, LUA_TTHREAD);
        let coroutine = lua_tothread(state, 1);
        let status = lua_resume_(coroutine, std::ptr::null_mut(), 0);
        if status == LUA_YIELD || status == LUA_BREAK || lua_hasfinalizers(coroutine) == 0 {
            return 0;
        }
        let finalizer = lua_newthread(state);
        lua_pushfinalizerfunction(finalizer);
        lua_xpush(state, finalizer, 1);
        let ok = lua_resume_(finalizer, std::ptr::null_mut(), 1) == LUA_OK;
        let n_results = if ok { lua_gettop(finalizer) } else { 1 };
        lua_pushboolean(state, c_int::from(ok));
        lua_xmove(finalizer, state, n_results);
        n_results + 1
    }
}

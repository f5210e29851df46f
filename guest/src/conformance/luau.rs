//! A file with Luau's own libraries, run as Luau's test program runs it.

use std::ffi::{CStr, CString};

use mlua::ffi::*;
use mlua::state::{GcIncParams, GcMode};
use mlua::{Error, Function, Lua, Table, Thread};

use super::files::{Resume, Run, runs};
use super::{basics, claim};

/// A function that runs the file, as often as it asks for.
pub fn entry(lua: &Lua, name: &str, source: &[u8]) -> mlua::Result<Function> {
    let (name, source) = (name.to_owned(), source.to_owned());
    lua.create_function(move |lua, ()| runs(&name).into_iter().try_for_each(|run| once(lua, &name, &source, run)))
}

fn once(lua: &Lua, name: &str, source: &[u8], run: &Run) -> mlua::Result<()> {
    for flag in run.flags {
        Lua::set_fflag(flag, true).map_err(|()| Error::runtime(format!("Luau has no flag {flag}")))?;
    }
    // Files measure the collector's steps: at Luau's own pace, and not ours.
    let pace = GcIncParams::default().goal(200).step_multiplier(200).step_size(1);
    lua.gc_set_mode(GcMode::Incremental(pace));
    let libraries = lua.create_table()?;
    let thread = open_libraries(lua, &libraries)?;
    basics::all(lua, &libraries)?;
    run.natives.iter().try_for_each(|add| add(lua, &libraries))?;
    let globals = close_libraries(lua, &thread)?;
    load(lua, &thread, name, source, run)?;
    set_callbacks(lua, &thread, run.callbacks)?;
    let ended = to_its_end(lua, &thread, run);
    set_callbacks(lua, &thread, None)?;
    ended?;
    run.after.map_or(Ok(()), |after| after(lua, &globals))
}

/// A thread with `libraries` as its globals, and all of Luau's libraries in there.
fn open_libraries(lua: &Lua, libraries: &Table) -> mlua::Result<Thread> {
    let open = |state: *mut lua_State| {
        // SAFETY: the globals are on the stack, and there is room for the two values that come onto it.
        unsafe {
            // Luau keeps the libraries that are open, and would add to those.
            lua_pushnil(state);
            lua_setfield(state, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
            let thread = lua_newthread(state);
            lua_xpush(state, thread, -2);
            lua_replace(thread, LUA_GLOBALSINDEX);
            luaL_openlibs(thread);
            lua_remove(state, -2);
        }
    };
    // SAFETY: `open` leaves the thread on the stack, and nothing else.
    unsafe { lua.exec_raw(libraries, open) }
}

/// Makes the libraries read-only, and gives the globals that the thread may write to.
fn close_libraries(lua: &Lua, thread: &Thread) -> mlua::Result<Table> {
    let close = |state: *mut lua_State| {
        // SAFETY: the thread is on the stack, and does not run.
        unsafe {
            let thread = lua_tothread(state, -1);
            luaL_sandbox(thread, 1);
            luaL_sandboxthread(thread);
            lua_xpush(thread, state, LUA_GLOBALSINDEX);
            lua_remove(state, -2);
        }
    };
    // SAFETY: `close` leaves the globals on the stack, and nothing else.
    let globals: Table = unsafe { lua.exec_raw(thread, close) }?;
    // The files take the one for the other.
    globals.raw_set("_G", &globals)?;
    Ok(globals)
}

/// Compiles the file and puts it onto the thread's stack.
fn load(lua: &Lua, thread: &Thread, name: &str, source: &[u8], run: &Run) -> mlua::Result<()> {
    let mut options = lua_CompileOptions::default();
    options.optimizationLevel = run.optimization;
    options.debugLevel = run.debug;
    options.typeInfoLevel = 1;
    options.coverageLevel = run.coverage;
    let name = CString::new(format!("={name}")).map_err(Error::external)?;
    // SAFETY: the options are those of this version of Luau.
    let bytecode = unsafe { luau_compile(source, options) };
    let mut failure = None;
    let load = |state: *mut lua_State| {
        // SAFETY: the thread is on the stack, and does not run; the bytecode comes from Luau's compiler.
        unsafe {
            let thread = lua_tothread(state, -1);
            if luau_load(thread, name.as_ptr(), bytecode.as_ptr().cast(), bytecode.len(), 0) != 0 {
                failure = Some(text(thread));
            }
            lua_settop(state, 0);
        }
    };
    // SAFETY: `load` leaves nothing on the stack.
    unsafe { lua.exec_raw::<()>(thread, load) }?;
    failure.map_or(Ok(()), |failure| Err(Error::runtime(failure)))
}

/// Has Luau call nothing of ours any more but what `set` sets.
fn set_callbacks(lua: &Lua, thread: &Thread, set: Option<fn(*mut lua_State)>) -> mlua::Result<()> {
    let change = |state: *mut lua_State| {
        // SAFETY: the thread is on the stack, and does not run. The callbacks live as long as the VM, and
        // nothing else looks at them now. Its interrupt is the host's.
        unsafe {
            let callbacks = &mut *lua_callbacks(state);
            callbacks.debugbreak = None;
            callbacks.debugstep = None;
            callbacks.debuginterrupt = None;
            callbacks.debugprotectederror = None;
            if let Some(set) = set {
                set(lua_tothread(state, -1));
            }
            lua_settop(state, 0);
        }
    };
    // SAFETY: `change` leaves nothing on the stack.
    unsafe { lua.exec_raw::<()>(thread, change) }
}

/// Runs what was loaded until it returns "OK".
fn to_its_end(lua: &Lua, thread: &Thread, run: &Run) -> mlua::Result<()> {
    let mut ended = Ok(());
    let go = |state: *mut lua_State| {
        // SAFETY: the thread is on the stack, has the file on its own, and does not run.
        unsafe {
            let thread = lua_tothread(state, -1);
            ended =
                if run.in_main_thread { resume_as_main_thread(thread, run) } else { resume_to_the_end(thread, run) };
            lua_settop(state, 0);
        }
    };
    // SAFETY: `go` leaves nothing on the stack.
    unsafe { lua.exec_raw::<()>(thread, go) }?;
    ended
}

/// Has the main thread run what `thread` would. It has only called the task that we are in, and waits.
///
/// # Safety
/// As [`resume_to_the_end`].
unsafe fn resume_as_main_thread(thread: *mut lua_State, run: &Run) -> mlua::Result<()> {
    // SAFETY: the caller vouches for the thread. The main thread gets back its globals and its stack.
    unsafe {
        let main = lua_mainthread(thread);
        let top = lua_gettop(main);
        lua_rawcheckstack(main, LUA_MINSTACK);
        lua_pushvalue(main, LUA_GLOBALSINDEX);
        lua_xpush(thread, main, LUA_GLOBALSINDEX);
        lua_replace(main, LUA_GLOBALSINDEX);
        lua_xmove(thread, main, 1);
        let ended = resume_to_the_end(main, run);
        lua_settop(main, top + 1);
        lua_replace(main, LUA_GLOBALSINDEX);
        ended
    }
}

/// # Safety
/// `thread` has a function on its stack, and does not run.
unsafe fn resume_to_the_end(thread: *mut lua_State, run: &Run) -> mlua::Result<()> {
    // SAFETY: the caller vouches for the thread.
    unsafe {
        let mut status = lua_resume_(thread, std::ptr::null_mut(), 0);
        while let (LUA_YIELD | LUA_BREAK, Some(on_pause)) = (status, run.on_pause) {
            status = match on_pause(thread)? {
                Resume::Plainly => lua_resume_(thread, std::ptr::null_mut(), 0),
                Resume::WithError => lua_resumeerror(thread, std::ptr::null_mut()),
            };
        }
        match status {
            LUA_OK => claim(text(thread) == "OK", "the file to return OK"),
            LUA_YIELD | LUA_BREAK => Err(Error::runtime("the file yielded")),
            _ => {
                let trace = CStr::from_ptr(lua_debugtrace(thread)).to_string_lossy().replace('\n', ", ");
                Err(Error::runtime(format!("{} [{trace}]", text(thread))))
            }
        }
    }
}

/// The string on top of a thread's stack, or what is there instead.
///
/// # Safety
/// There is a value on the stack, and the thread does not run.
unsafe fn text(thread: *mut lua_State) -> String {
    // SAFETY: the caller vouches for the thread; names of types live for ever, and a string as long as it
    // is on the stack.
    unsafe {
        let mut text = lua_tostring(thread, -1);
        if text.is_null() {
            text = luaL_typename(thread, -1);
        }
        CStr::from_ptr(text).to_string_lossy().into_owned()
    }
}

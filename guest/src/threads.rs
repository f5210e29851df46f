//! The threads of first tasks.
//!
//! One that has come to its end begins again with the next request: a new one costs as much as a small handler, and the
//! collector has to take it away again. Not so one that the script has got hold of, with `coroutine.running`: what it
//! keeps must stay what it was.

use std::cell::RefCell;

use mlua::ffi::{lua_getthreaddata, lua_settop, lua_xmove};
use mlua::{Function, IntoLua, Lua, Table, Thread};

/// Most threads that wait for a request.
const MAX_IDLE: usize = 16;

/// Threads that begin with `run_first` of the prelude.
pub struct Threads {
    run_first: Function,
    hold: Function,
    idle: RefCell<Vec<Thread>>,
}

impl Threads {
    /// None as yet.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn new(prelude: &Table) -> mlua::Result<Self> {
        let idle = RefCell::new(Vec::with_capacity(MAX_IDLE));
        Ok(Self { run_first: prelude.raw_get("run_first")?, hold: prelude.raw_get("hold")?, idle })
    }

    /// Makes the first one.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn prepare(&self, lua: &Lua) -> mlua::Result<()> {
        let thread = self.make(lua)?;
        self.idle.borrow_mut().push(thread);
        Ok(())
    }

    /// Drops those that wait.
    pub fn forget(&self) {
        self.idle.borrow_mut().clear();
    }

    /// A thread whose arguments are to come: the function to run, and its own.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn take(&self, lua: &Lua) -> mlua::Result<Thread> {
        let idle = self.idle.borrow_mut().pop();
        idle.map_or_else(|| self.make(lua), Ok)
    }

    /// Takes back a thread whose function has returned.
    pub fn give_back(&self, lua: &Lua, thread: Thread) {
        let mut idle = self.idle.borrow_mut();
        // SAFETY: the thread is alive, for it is held here, and has come to its end: its stack is free.
        unsafe {
            let is_known = !lua_getthreaddata(thread.state()).is_null();
            if is_known || idle.len() >= MAX_IDLE {
                return;
            }
            lua_settop(thread.state(), 0);
            let given = lua.exec_raw_lua(|raw| {
                (&self.run_first).push_into_stack(raw).map(|()| lua_xmove(raw.state(), thread.state(), 1))
            });
            if given.is_ok() {
                idle.push(thread);
            }
        }
    }

    fn make(&self, lua: &Lua) -> mlua::Result<Thread> {
        let thread = lua.create_thread(self.run_first.clone())?;
        // Only the scheduler may resume it.
        self.hold.call::<()>(&thread)?;
        Ok(thread)
    }
}

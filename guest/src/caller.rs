//! Who calls: the line of the script, and the rights of the module table that the function is from.
//!
//! A function's body may be polled long after its call, and other tasks run in between. So each poll says anew
//! for whom it is, and whatever it submits meanwhile is theirs.

use std::cell::RefCell;
use std::ffi::{CStr, c_int};
use std::future::{Future, poll_fn};
use std::mem::MaybeUninit;
use std::pin::pin;

use mlua::ffi::{lua_Debug, lua_getinfo};
use mlua::state::RawLua;
use mlua::{Lua, LuaString, Table};
use neoc_abi::{Call, Operation, Site};

use crate::stdlib::narrowing;

/// The sources of functions that are no script's.
pub const FOREIGN: [&str; 3] = ["[neoc]", "[C]", "__mlua_async_poll"];

/// Most frames that are looked at for one of a script's.
const MAX_LEVELS: c_int = 32;

/// The scope of all that the tenant may do.
pub const WHOLE_TENANT: u32 = 0;

/// What the functions of a module's table may do of what the tenant may. The host keeps to it.
#[derive(Clone)]
pub struct Rights {
    /// The module of the tenant's that has less by the policy, counted from 1. [`WHOLE_TENANT`]: none.
    pub scope: u32,
    /// What the script has narrowed the table to, as [`narrowing::of_script`] gives it.
    pub narrowing: Option<LuaString>,
}

/// Who calls.
#[derive(Clone)]
pub struct Caller {
    lua: Lua,
    rights: Rights,
}

thread_local! {
    /// Whose function runs. Nobody's: the scheduler itself submits.
    static CURRENT: RefCell<Option<Caller>> = const { RefCell::new(None) };
}

impl Rights {
    /// All that the tenant may.
    pub fn all() -> Self {
        Self::of_scope(WHOLE_TENANT)
    }

    /// All that a module of the tenant's may.
    pub fn of_scope(scope: u32) -> Self {
        Self { scope, narrowing: None }
    }
}

impl Caller {
    /// A call in this VM, of a function with these rights.
    pub fn new(lua: &Lua, rights: &Rights) -> Self {
        Self { lua: lua.clone(), rights: rights.clone() }
    }

    /// Runs a function on behalf of this caller.
    pub fn run<T>(&self, f: impl FnOnce() -> T) -> T {
        let _restore = Restore(CURRENT.replace(Some(self.clone())));
        f()
    }

    /// Polls a future on behalf of this caller.
    pub async fn poll<T>(self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        poll_fn(|context| self.run(|| future.as_mut().poll(context))).await
    }
}

/// The call that this operation is, of whoever calls now.
pub fn call(operation: Operation) -> Call {
    // Luau's stack is that of the call, at each poll: the coroutine was resumed where it waits.
    match CURRENT.with_borrow(Clone::clone) {
        Some(Caller { lua, rights: Rights { scope, narrowing } }) => {
            let narrowing = narrowing.filter(|_| operation.can_be_narrowed());
            Call {
                site: site(&lua),
                scope,
                narrowing: narrowing.and_then(|kept| narrowing::of_function(&kept)),
                operation,
            }
        }
        None => Call { site: None, scope: WHOLE_TENANT, narrowing: None, operation },
    }
}

/// Threads whose function is none of the script's, and the places where they were made: `file:line`.
pub struct MadeAt(pub Table);

/// The line of the innermost function that is a script's. Where a function of ours is all that a task or a coroutine
/// runs, the line where that was made.
pub fn site(lua: &Lua) -> Option<Site> {
    lua.exec_raw_lua(innermost).or_else(|| made_at(lua))
}

/// As [`site`], of functions that are a script's. Each call of ours asks, and mlua would ask Luau thrice for each level.
fn innermost(raw: &RawLua) -> Option<Site> {
    let mut debug = MaybeUninit::<lua_Debug>::uninit();
    for level in 0..MAX_LEVELS {
        // SAFETY: the state is that of the running thread. Of a level that there is Luau writes the source, which ends in
        // a zero and stays until it is asked again, and the line.
        let (module, line) = unsafe {
            // The first level without a frame is the end of the stack.
            if lua_getinfo(raw.state(), level, c"sl".as_ptr(), debug.as_mut_ptr()) == 0 {
                return None;
            }
            let debug = debug.as_ptr();
            (CStr::from_ptr((*debug).short_src), (*debug).currentline)
        };
        if !FOREIGN.iter().any(|foreign| foreign.as_bytes() == module.to_bytes()) {
            let (module, line) = (module.to_string_lossy().into_owned(), u32::try_from(line).unwrap_or_default());
            return Some(Site { module, line });
        }
    }
    None
}

/// Where the running thread was made, if its function is none of the script's.
fn made_at(lua: &Lua) -> Option<Site> {
    let MadeAt(places) = &*lua.app_data_ref::<MadeAt>()?;
    let place = places.raw_get::<Option<LuaString>>(lua.current_thread()).ok()??.to_string_lossy();
    let (module, line) = place.rsplit_once(':')?;
    Some(Site { module: module.to_owned(), line: line.parse().ok()? })
}

/// Puts back who was there before.
struct Restore(Option<Caller>);

impl Drop for Restore {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

//! Where the VM of the base image ends and what a script adds begins.
//!
//! Each page that a request changes is copied for it, and put back after it. A heap that has seen much has holes
//! everywhere, and whatever is allocated next goes into them: a few words in each of thirty pages. So the last act
//! of `init` closes every hole, and a script's own objects lie side by side behind it.

use mlua::Lua;
use mlua::ffi::lua_State;

unsafe extern "C-unwind" {
    /// In Luau's allocator, see patch_crates.py: it takes new pages for all objects to come.
    fn neoc_begin_new_pages(state: *mut lua_State);

    /// There, too: allocates anew what every request changes.
    fn neoc_move_arrays(state: *mut lua_State);
}

/// Closes the heap as it is, and moves what every request changes to where a script's objects begin. What the heap had
/// free is lost to the script.
///
/// # Errors
/// When there is no memory.
pub fn seal(lua: &Lua) -> mlua::Result<()> {
    // SAFETY: the state is valid, and its stack stays as it is.
    unsafe { lua.exec_raw::<()>((), |state| neoc_begin_new_pages(state))? };
    #[cfg(target_arch = "wasm32")]
    crate::allocator::fill_holes();
    // SAFETY: the state is valid, and Luau itself moves its stacks at any time. No limit is set yet, so there is memory.
    unsafe { lua.exec_raw::<()>((), |state| neoc_move_arrays(state)) }
}

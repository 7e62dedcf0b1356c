//! Link flags of the shared library, and the C header made from `src/ffi`.
//!
//! The header is written to `$OUT_DIR/lance_tasks.h`; `tests/abi/check_header.sh` compares it with the
//! committed `include/lance_tasks/lance_tasks.h`. With `LANCE_TASKS_WRITE_HEADER=1` it is written over
//! the committed one as well.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// The shared library's ABI generation: part of the SONAME, raised on any incompatible change.
const SONAME: &str = "liblance_tasks.so.0";

/// Files in the order in which their functions stand in the header; others follow by name.
const ORDER: &[&str] = &[
    "types.rs",
    "executor.rs",
    "verbs.rs",
    "tables.rs",
    "files.rs",
    "guard.rs",
    "error.rs",
    "python.rs",
];

fn main() {
    link();
    // A header is nothing that a user's build may fail for: the committed one is what is installed.
    if let Err(why) = header() {
        println!("cargo:warning=lance_tasks.h was not generated: {why}");
    }
}

fn link() {
    let family = env::var("CARGO_CFG_TARGET_FAMILY").unwrap_or_default();
    let vendor = env::var("CARGO_CFG_TARGET_VENDOR").unwrap_or_default();
    if !family.split(',').any(|f| f == "unix") || vendor == "apple" {
        return;
    }
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,{SONAME}");
    // rustc's own version script exports every `no_mangle` function of every dependency by its exact
    // name, which beats the patterns of a second script. What comes from archives, that is from
    // other crates, is hidden instead; every linker knows this flag.
    println!("cargo:rustc-cdylib-link-arg=-Wl,--exclude-libs,ALL");
}

fn header() -> Result<(), String> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").map_err(|e| e.to_string())?);
    let ffi = root.join("src/ffi");
    let config = root.join("cbindgen.toml");
    // Only what makes the header: other edits do not run this again.
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src/ffi");
    println!("cargo:rerun-if-env-changed=LANCE_TASKS_WRITE_HEADER");
    if !config.exists() {
        return Ok(());
    }
    println!("cargo:rerun-if-changed=cbindgen.toml");

    let mut builder = cbindgen::Builder::new()
        .with_config(cbindgen::Config::from_file(config.to_string_lossy().as_ref())?);
    for file in sources(&ffi)? {
        builder = builder.with_src(file);
    }
    let mut text = Vec::new();
    builder.generate().map_err(|e| e.to_string().replace('\n', " "))?.write(&mut text);

    let out = PathBuf::from(env::var("OUT_DIR").map_err(|e| e.to_string())?);
    write(&out.join("lance_tasks.h"), &text)?;
    if env::var("LANCE_TASKS_WRITE_HEADER").is_ok_and(|v| v == "1") {
        write(&root.join("include/lance_tasks/lance_tasks.h"), &text)?;
    }
    Ok(())
}

fn sources(ffi: &Path) -> Result<Vec<PathBuf>, String> {
    let mut files = Vec::new();
    for entry in fs::read_dir(ffi).map_err(|e| format!("{}: {e}", ffi.display()))? {
        let path = entry.map_err(|e| e.to_string())?.path();
        // Only files that hold a part of the ABI: cbindgen's parser knows less syntax than rustc.
        let holds_abi = |text: String| text.contains("no_mangle") || text.contains("repr(C)");
        if path.extension().is_some_and(|e| e == "rs")
            && fs::read_to_string(&path).is_ok_and(holds_abi)
        {
            files.push(path);
        }
    }
    files.sort_by_key(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        (ORDER.iter().position(|o| *o == name).unwrap_or(ORDER.len()), name)
    });
    Ok(files)
}

/// Leaves a file that says the same untouched, with its time.
fn write(path: &Path, text: &[u8]) -> Result<(), String> {
    if fs::read(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    }
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}

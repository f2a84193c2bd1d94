//! Writes the generated YAML into the repository, or with `--check` says which files are stale.

use std::{env, fs, path::Path, process::ExitCode};

fn main() -> ExitCode {
    match run(env::args().skip(1).any(|a| a == "--check")) {
        Ok(stale) if stale.is_empty() => ExitCode::SUCCESS,
        Ok(stale) => {
            for path in stale {
                eprintln!("{path} is stale: run `make generate` and commit the result");
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("crdgen: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(check: bool) -> Result<Vec<String>, Box<dyn std::error::Error + Send + Sync>> {
    // As it is now, not as it was when this was built: checkouts may share a target folder.
    let manifest = env::var_os("CARGO_MANIFEST_DIR")
        .ok_or("CARGO_MANIFEST_DIR is not set: run it with `cargo run --package paddock-crds`")?;
    let root = Path::new(&manifest).join("..");
    let mut stale = Vec::new();
    for file in paddock_crds::generated_files()? {
        let path = root.join(&file.path);
        if fs::read_to_string(&path).is_ok_and(|old| old == file.content) {
            continue;
        }
        if check {
            stale.push(file.path);
        } else {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::write(&path, file.content)?;
            println!("{}", file.path);
        }
    }
    Ok(stale)
}

//! The kernels as CUDA's own compiler sees them, where it is: what the emulation can't know.

use std::path::Path;
use std::process::Command;

use crate::emulated::{KERNELS, sources};

#[test]
fn nvcc_compiles_every_kernel_without_a_warning() {
    let nvcc =
        std::env::var("CUDA_HOME").map_or_else(|_| "nvcc".into(), |home| Path::new(&home).join("bin/nvcc"));
    if Command::new(&nvcc).arg("--version").output().is_err() {
        println!("skipped: there is no nvcc, neither in CUDA_HOME nor in PATH");
        return;
    }
    let made = tempfile::tempdir().unwrap();
    let common = Path::new(KERNELS).join("common.cuh");
    for path in sources(KERNELS, &["cu"]) {
        let mut command = Command::new(&nvcc);
        command.args(["-std=c++17", "-arch=compute_80", "--ptx", "-Werror=all-warnings", "-include"]);
        command.arg(&common).arg(&path).arg("-o").arg(made.path().join("kernels.ptx"));
        let result = command.output().unwrap();
        assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
    }
}

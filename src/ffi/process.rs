//! What belongs to the whole process: Lance's thread count, and whether the CPU will do.

/// Lance reads its CPU thread count from the environment, once. Where the user said nothing, give it
/// the executor's: alone it takes two CPUs less than there are.
///
/// Called before the first use of Lance in the process; like every write to the environment it must
/// not race with another thread that reads it, so executors are made before threads that do.
pub(crate) fn size_lance_pool(threads: usize) {
    const NAME: &str = "LANCE_CPU_THREADS";
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        if std::env::var_os(NAME).is_none() {
            // SAFETY: as documented above.
            unsafe { std::env::set_var(NAME, threads.to_string()) };
        }
    });
}

/// Give memory that is free back to the system; glibc keeps what lies between blocks in use.
pub(crate) fn trim_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: takes no pointers, and locks each arena itself.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// This build needs x86-64-v3. Where the loader runs this on an older CPU, say so and stop, instead of
/// dying of SIGILL somewhere later.
#[cfg(all(target_arch = "x86_64", target_os = "linux", target_feature = "avx2"))]
mod cpu {
    use std::arch::x86_64::{__cpuid, __cpuid_count};

    // Before the constructors of the dependencies, which are compiled for the newer CPU as well.
    #[used]
    #[unsafe(link_section = ".init_array.00001")]
    static CHECK: extern "C" fn() = check;

    extern "C" fn check() {
        // AVX, FMA, MOVBE, OSXSAVE, F16C of leaf 1; AVX2, BMI1, BMI2 of leaf 7; LZCNT of 0x80000001.
        const LEAF_1_ECX: u32 = 1 << 28 | 1 << 12 | 1 << 22 | 1 << 27 | 1 << 29;
        const LEAF_7_EBX: u32 = 1 << 5 | 1 << 3 | 1 << 8;
        const LEAF_EXT_ECX: u32 = 1 << 5;
        let highest = __cpuid(0).eax;
        let ok = highest >= 7
            && __cpuid(1).ecx & LEAF_1_ECX == LEAF_1_ECX
            && __cpuid_count(7, 0).ebx & LEAF_7_EBX == LEAF_7_EBX
            && __cpuid(0x8000_0001).ecx & LEAF_EXT_ECX == LEAF_EXT_ECX;
        if !ok {
            const TEXT: &[u8] = b"lance-tasks: this build needs an x86-64-v3 CPU (AVX2, BMI2, FMA; \
                Intel Haswell or AMD Excavator and later); build from source with another target-cpu\n";
            // SAFETY: a plain write and exit before anything else of the library runs.
            unsafe {
                libc::write(2, TEXT.as_ptr().cast(), TEXT.len());
                libc::_exit(126);
            }
        }
    }
}

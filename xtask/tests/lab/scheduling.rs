//! Whose turn it is on the processors: what makes a test true to life, and what a test environment may not allow.

use xtask::tool::Tool;

/// The calling thread's id.
pub fn this_thread() -> String {
    let link = std::fs::read_link("/proc/thread-self").unwrap();
    link.file_name().unwrap().to_str().unwrap().to_owned()
}

/// Runs the calling thread before all ordinary ones.
pub fn run_first() {
    allowed_or_said(&Tool::new("chrt").words("--rr --pid 1").arg(this_thread()));
}

/// Runs `tool`, or says that it is not allowed here.
pub fn allowed_or_said(tool: &Tool) {
    if let Err(error) = tool.output() {
        println!("not allowed, so agents and relay take each other's processors: {error:#}");
    }
}

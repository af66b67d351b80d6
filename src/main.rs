//! The program: hands over to [`lora_tool::cli`].

fn main() -> std::process::ExitCode {
    lora_tool::cli::main()
}

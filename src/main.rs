//! The program: hands over to [`lora_tool::cli`].

fn main() {
    lora_tool::cli::main()
}

"""RTL that runs: a design as Verilog, Verilog as a shared object, and the loop that feeds it."""

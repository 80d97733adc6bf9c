// Command claviger is the tool of operators, relying parties and developers: it verifies quotes offline, shows
// collateral, asks a cluster for keys from simulated enclaves, deploys and calls functions, and runs the whole system on
// the simulator. It never holds a production key: what it derives, it derives on the simulator.
package main

//go:build ego

package main

import (
	"github.com/claviger/claviger/enclave"
	"github.com/claviger/claviger/enclave/ego"
)

func openTEE() (enclave.TEE, error) { return ego.Open() }

//go:build !ego

package main

import (
	"github.com/claviger/claviger/enclave"
	"github.com/claviger/claviger/enclave/tdxguest"
)

func openTEE() (enclave.TEE, error) { return tdxguest.Open() }

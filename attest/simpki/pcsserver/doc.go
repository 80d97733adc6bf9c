// Package pcsserver serves a simulated PKI over HTTP, as Intel's provisioning certification service (PCS) version 4 and as
// Intel's caching service (PCCS) do, faults included. It is for simulators, tests and demonstrations: whoever trusts the
// simulated root trusts whoever has its seed.
//
//	server, err := pcsserver.New(pcsserver.Config{PKI: pki})
//	server.Inject(pcsserver.TCBInfo, 2, pcsserver.Status(503))  // the next two requests for TCB info fail
//	http.Serve(listener, server)
//
// It answers GET on
//
//	/sgx/certification/v4/tcb?fmspc=&update=&tcbEvaluationDataNumber=     and the same under /tdx
//	/sgx/certification/v4/qe/identity?update=&tcbEvaluationDataNumber=    and the same under /tdx
//	/sgx/certification/v4/pckcrl?ca=&encoding=
//	/sgx/certification/v4/rootcacrl                                       PCCS only: hex of the root's list
//	/IntelSGXRootCA.der                                                   the root's list, as at its distribution point
//
// Issuer chains travel percent-encoded in headers. PCCS differs from PCS in that it calls the TCB info's chain
// SGX-TCB-Info-Issuer-Chain in older versions and sends revocation lists as hex unless asked for DER.
//
// Sources: Intel SGX and TDX Provisioning Certification Service API, version 4; Intel's documentation of the PCCS API.
package pcsserver

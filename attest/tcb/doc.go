// Package tcb reads Intel's signed TCB info and QE identity documents and evaluates a platform against them.
//
// The signature of a document covers the raw bytes of its inner JSON object. VerifyInfo and VerifyIdentity check it over
// that slice of the input and then decode that same slice, with keys compared exactly and repeated keys refused, so that
// nothing can be read from a document that Intel did not sign. Evaluation follows Intel's verification library step by
// step; whether a status is acceptable is decided elsewhere.
//
// Sources: Intel SGX and TDX Provisioning Certification Service API, version 4, "Get TCB Info" and "Get QE Identity"
// (data models of versions 2 and 3); Intel TDX DCAP Quoting Library API, "TCB evaluation"; Intel SGX DCAP Quote
// Verification Library for the order of comparisons and the merge of statuses.
package tcb

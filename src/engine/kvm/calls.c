/*
 * What the kernel was asked when it refused, for messages: the call, and the capability that it
 * needs.
 */
#include "engine/kvm/kvm.h"

static const struct {
	unsigned long request;
	const char *name;
} calls[] = {
	{KVM_GET_REGS, "KVM_GET_REGS"},
	{KVM_SET_REGS, "KVM_SET_REGS"},
	{KVM_GET_SREGS, "KVM_GET_SREGS"},
	{KVM_SET_SREGS, "KVM_SET_SREGS"},
	{KVM_GET_MSRS, "KVM_GET_MSRS"},
	{KVM_SET_MSRS, "KVM_SET_MSRS"},
	{KVM_GET_XCRS, "KVM_GET_XCRS (KVM_CAP_XCRS)"},
	{KVM_SET_XCRS, "KVM_SET_XCRS (KVM_CAP_XCRS)"},
	{KVM_GET_XSAVE, "KVM_GET_XSAVE (KVM_CAP_XSAVE)"},
	{KVM_SET_XSAVE, "KVM_SET_XSAVE (KVM_CAP_XSAVE)"},
	{KVM_GET_DEBUGREGS, "KVM_GET_DEBUGREGS (KVM_CAP_DEBUGREGS)"},
	{KVM_SET_DEBUGREGS, "KVM_SET_DEBUGREGS (KVM_CAP_DEBUGREGS)"},
	{KVM_GET_VCPU_EVENTS, "KVM_GET_VCPU_EVENTS (KVM_CAP_VCPU_EVENTS)"},
	{KVM_SET_VCPU_EVENTS, "KVM_SET_VCPU_EVENTS (KVM_CAP_VCPU_EVENTS)"},
	{KVM_SET_DEVICE_ATTR, "KVM_SET_DEVICE_ATTR (KVM_CAP_VCPU_ATTRIBUTES)"},
	{KVM_GET_LAPIC, "KVM_GET_LAPIC (KVM_CAP_IRQCHIP)"},
	{KVM_SET_LAPIC, "KVM_SET_LAPIC (KVM_CAP_IRQCHIP)"},
	{KVM_GET_MP_STATE, "KVM_GET_MP_STATE (KVM_CAP_MP_STATE)"},
	{KVM_SET_MP_STATE, "KVM_SET_MP_STATE (KVM_CAP_MP_STATE)"},
};

const char *kvm_call_name(unsigned long request)
{
	for (u32 i = 0; i < ARRAY_SIZE(calls); i++)
		if (calls[i].request == request)
			return calls[i].name;
	return "the kernel";
}
